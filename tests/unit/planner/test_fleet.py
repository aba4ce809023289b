"""A plan over many devices: bytes and seconds by hand, operations as the engine counts them, published figures."""

import json
import re
from dataclasses import replace

import pytest
import yaml

from fixtures_models import tiny_config
from tunesmith import recipe_zero
from tunesmith.cli.main import main
from tunesmith.defaults import Device, with_values
from tunesmith.engine import shared_out
from tunesmith.errors import RecipeError
from tunesmith.planner import devices, fleet, memory, pace, shapes, spread
from tunesmith.planner.devices import Cluster, Rates
from tunesmith.planner.layout import Layout, layouts
from tunesmith.recipe import Recipe

CUDA = Device("cuda", "a CUDA device", True)
ROUND = Rates("round", 1e12, 1e12, 1e12, 1e9, 1e8, 1e9, "by hand")
ONE, DDP, FSDP = Layout("one"), Layout("ddp", replicate=4), Layout("fsdp", fsdp=4)


def last(recipe, shape, layout):
    """The parts at the update."""
    return spread.share(recipe, shape, CUDA, layout).moments[-1].parts


def test_rates_are_those_of_the_makers_and_of_bench():
    """bench knows peaks by the driver's names; both tables are of one data sheet."""
    from tunesmith.engine import peaks

    drivers = {"H100-80GB": "NVIDIA H100 80GB HBM3", "H200-141GB": "NVIDIA H200", "A100-80GB": "NVIDIA A100-SXM4-80GB"}
    drivers |= {f"RTX-{name}-24GB": f"NVIDIA GeForce RTX {name}" for name in ("3090", "4090")}
    drivers |= {
        "B200-180GB": "NVIDIA B200",
        "L40S-48GB": "NVIDIA L40S",
        "L4-24GB": "NVIDIA L4",
        "A10-24GB": "NVIDIA A10",
    }
    for name, driver in drivers.items():
        assert devices.table()[name].flops == peaks.listed(Device("cuda", driver, True), peaks.HALF[0])
    for name, row in devices.table().items():
        assert row.memory == float(name.rpartition("-")[2].removesuffix("GB")) * 1e9
        assert row.link >= row.across > 0 and row.bandwidth > row.link and row.source


def test_machines_as_they_are_said():
    found = devices.cluster_of("8xH100-80GB", 4, "70GB")
    assert (found.each, found.devices, found.device.memory) == (8, 32, 70e9)
    assert found.link(8) == 450e9 and found.link(9) == 50e9
    assert devices.cluster_of("L4-24GB").devices == 1
    for number in (0, 99999999999999):
        with pytest.raises(RecipeError, match=f"--devices: {number} devices .*: say from 1 to 1000000 of a machine"):
            devices.cluster_of(f"{number}xH100-80GB")
    assert devices.cluster_of("8xh100-80gb") == devices.cluster_of("8xH100-80GB")
    for wrong in ("8xH100-80", "", "x"):
        with pytest.raises(RecipeError, match="--devices: there is no device"):
            devices.cluster_of(wrong)


@pytest.mark.parametrize("cluster", [Cluster(ROUND, 1), Cluster(ROUND, 8), Cluster(ROUND, 4, 3)])
def test_layouts_take_all_devices(told, cluster):
    _, shape = told()
    found = list(layouts(cluster, shape, 4096))
    assert {one.devices for one in found} == {cluster.devices} and len(set(found)) == len(found)


@pytest.mark.parametrize("said", [{}, {"strategy": "fsdp", "replicate": 2}, {"context": 2}, {"strategy": "deepspeed"}])
def test_words_lay_a_recipe_out_as_is_planned(told, said):
    """Said on the command line they give the recipe that was asked about, whatever the recipe says itself."""
    recipe, shape = told(parallel=said)
    written = recipe.model_dump(mode="json", exclude_unset=True)
    for one in layouts(Cluster(ROUND, 4, 2), shape, 4096):
        parallel = dict(written.get("parallel", {}))
        for word in one.words(recipe):
            name, _, value = word.removeprefix("parallel.").partition("=")
            parallel[name] = yaml.safe_load(value)
        laid = Recipe(**written | {"parallel": parallel})
        assert laid.parallel == one.told(recipe).parallel
        assert recipe_zero.offload(laid.parallel) == one.offload
        if one.zero_stage:
            assert recipe_zero.stage(laid.parallel) == one.zero_stage
        elif one.strategy == "fsdp" and one.rows == one.devices:
            assert shared_out.sizes(laid.parallel, one.devices) == (one.replicate, one.fsdp)


def test_layouts_are_had_where_the_recipe_can_be_trained_so(told, monkeypatch):
    """`recipe_parallel.problem_among` alone decides it, of a recipe that says the layout."""
    recipe, shape = told(train={"row_tokens": 4096})
    asked = []
    monkeypatch.setattr(fleet, "problem_among", lambda one, number: asked.append(one.parallel) or "no")
    found = fleet.choices(recipe, shape, Cluster(ROUND, 4))
    assert {one.refused for one in found} == {"no"} and len(asked) == len(found) == len(set(map(repr, asked)))
    monkeypatch.undo()
    assert {str(one.layout) for one in fleet.choices(recipe, shape, Cluster(ROUND, 4)) if one.refused is None} >= {
        "ddp",
        "fsdp 4",
        "ddp 2 cp 2",
        "fsdp 2 cp 2",
        "zero-1",
        "zero-2",
        "zero-3",
        "zero-2, offload cpu",
        "zero-3, offload cpu",
        "zero-3, offload nvme",
    }
    two = fleet.choices(recipe, shape, Cluster(ROUND, 2))
    assert next(one for one in two if one.layout.tensor == 2).layout.words(recipe) == (
        "parallel.strategy=ddp",
        "parallel.tensor=2",
    )


def test_weights_gradients_and_state_are_divided(told):
    recipe, shape = told()
    alone = memory.estimate(recipe, shape, CUDA).moments[-1].parts
    names = ("weights", "gradients", "optimizer state")
    ddp, fsdp = last(recipe, shape, DDP), last(recipe, shape, FSDP)
    assert [ddp[name] for name in names] == [alone[name] for name in names]
    assert [fsdp[name] for name in names] == [alone[name] // 4 for name in names]


def test_what_is_sent_lies_somewhere(told):
    """DDP's buckets are the gradients again; of FSDP two layers in half precision, and the words, are whole.

    The peak of FSDP itself is measured in tests/invariants/test_shared_peaks.py.
    """
    recipe, shape = told()
    peak = {layout: spread.share(recipe, shape, CUDA, layout).moments[0].parts for layout in (ONE, DDP, FSDP)}
    numel, layer = sum(one.numel for one in shape.weights), shape.layers[0]
    products = sum(one.inputs * one.outputs for one in layer.linears.values())
    assert peak[DDP]["communication"] == 4 * numel and "communication" not in peak[ONE]
    assert peak[FSDP]["gathered"] == 4 * 400 * 32  # words as hidden states are, in float32
    assert "communication" not in peak[FSDP]  # there is no gradient yet
    below = spread.share(recipe, shape, CUDA, FSDP).moments[2].parts
    assert below["gathered"] == 2 * 2 * products + 4 * 400 * 32
    assert below["communication"] == (2 + 4) * layer.trained + 4 * 400 * 32  # the head's gradient is not divided yet
    recipe, shape = told({"type": "lora", "r": 4})
    parts = spread.share(recipe, shape, CUDA, DDP).moments[0].parts
    assert parts["communication"] == sum(one.nbytes for one in shape.weights if one.trained)


def test_what_an_adapter_adds_is_not_divided(told):
    """It lies whole on each process, with its gradients and the state of its optimizer."""
    recipe, shape = told({"type": "lora", "r": 4})
    alone, parts = (last(recipe, shape, layout) for layout in (ONE, FSDP))
    beside = sum(one.nbytes for one in shape.weights if one.trained)
    assert parts["gradients"] == alone["gradients"] == beside
    assert parts["optimizer state"] == alone["optimizer state"] >= 2 * beside
    assert parts["weights"] == beside + (alone["weights"] - beside) // 4


def test_a_layer_divided_by_tensor_parallelism(told):
    """Projections by two; words, norms, and the head's passes lie whole on each process, and nothing is compiled."""
    recipe, shape = told()
    half = spread.divided(shape, 2)
    assert (half.heads, half.key_heads, half.inner) == (shape.heads // 2, shape.key_heads // 2, shape.inner // 2)
    for name, one in half.layers[0].linears.items():
        whole = shape.layers[0].linears[name]
        assert one.inputs * one.outputs * 2 == whole.inputs * whole.outputs
    assert spread.divided(shape, 1) is shape
    products = 2 * sum(one.inputs * one.outputs for one in shape.layers[0].linears.values())
    numel = sum(one.numel for one in shape.weights)
    parts = last(recipe, shape, Layout("ddp", tensor=2))
    assert parts["weights"] - shape.buffer_bytes == parts["gradients"] == 4 * (numel - products // 2)
    assert half.layers[0].trained == shape.layers[0].trained - products // 4


def test_what_an_adapter_adds_is_whole_beside_products_in_parts(told):
    _, shape = told({"type": "lora", "r": 4})
    half = spread.divided(shape, 2, beside=True)
    assert [one.shape for one in half.weights if one.trained] == [one.shape for one in shape.weights if one.trained]
    assert half.layers[0].trained == shape.layers[0].trained


@pytest.mark.parametrize(
    ("compute", "adapter", "beside"), [("once", "full", 0), ("step", "full", 4), ("step", "lora", 0)]
)
def test_a_reference_is_beside_where_it_is_a_model(told, compute, adapter, beside):
    recipe, shape = told(adapter, objective="dpo", reference={"compute": compute})
    numel = sum(one.numel for one in shape.weights)
    for layout in (ONE, DDP, FSDP):  # each process has a whole one
        assert last(recipe, shape, layout).get("other models", 0) == beside * numel
    assert memory.estimate(recipe, shape, CUDA).moments[0].parts.get("other models", 0) == beside * numel


@pytest.mark.parametrize("adapter", ["full", {"type": "lora", "r": 4}, {"type": "freeze", "num_layers": 1}])
def test_operations_are_those_that_bench_counts(told, adapter):
    from tunesmith.engine.flops import Cost, Sequence

    recipe, shape = told(adapter)
    counted = Cost.of(shapes.adapted(recipe, tiny_config(400))).of_step([Sequence(512)], 512) / 512
    assert pace.operations(shape, 512) == pytest.approx(counted, rel=0.02)


def test_what_products_read_and_write_by_hand(told):
    """Of q and its like one input and half of the outputs, of o and down the other way round, in half precision."""
    _, shape = told()
    hidden, keys, inner = 32, 16, 64
    into, out = 5 * hidden + inner + hidden, 2 * hidden + 2 * keys + 2 * inner + hidden
    whole = 2 * 2 * (into + out)  # of two layers
    assert pace._of_products(shape, 1, 0.0) == 3 * whole
    across = 5 * hidden + 2 * hidden  # inputs of five, outputs of two
    cut = hidden + inner + hidden + 2 * keys + 2 * inner
    assert pace._of_products(shape, 2, 1.0) == 4 * 2 * 2 * (across + cut / 2)


def test_computing_again_costs_a_forward_pass(told):
    recipe, shape = told()
    plain = pace.operations(shape, 512)
    head = 2 * 32 * 400
    assert pace.operations(shape, 512, 1.0) - plain == pytest.approx((plain - 3 * head) / 3)
    assert pace.recomputed(recipe) == 1 and pace.recomputed(told(train={"activation_checkpointing": 4})[0]) == 0.25


def test_seconds_by_hand(told):
    """A link so slow that it is all: DDP sums its gradients in float32, there and back, 3/4 of them each way."""
    recipe, shape = told(train={"row_tokens": 512, "compile": True})
    slow = Cluster(Rates("slow", 1e12, 1e15, 1e15, 1e3, 1e2, 1e3, "by hand"), 4)
    numel = sum(one.numel for one in shape.weights)
    ddp, fsdp = (pace.pace(recipe, shape, layout, slow) for layout in (DDP, FSDP))
    assert ddp.seconds == pytest.approx(2 * 0.75 * numel * 4 / 1e3, rel=1e-3)
    assert fsdp.seconds == pytest.approx(0.75 * numel * (2 * 2 + 4) / 1e3, rel=1e-3)  # gathered twice in half precision
    assert ddp.tokens == fsdp.tokens == 4 * 512
    quick = Cluster(Rates("quick", 1e12, 1e6, 1e15, 1e15, 1e15, 1e15, "by hand"), 4)
    found = pace.pace(recipe, shape, DDP, quick)
    assert found.seconds == pytest.approx(512 * pace.operations(shape, 512, 1.0) / 1e6 / pace.REACHED, rel=1e-3)


def test_accumulation_sends_once(told):
    recipe, shape = told(train={"row_tokens": 512})
    more = with_values(recipe, {"train.gradient_accumulation_steps": 4})
    slow = Cluster(Rates("slow", 1e12, 1e15, 1e15, 1e3, 1e2, 1e3, "by hand"), 4)
    once, four = (pace.pace(one, shape, DDP, slow) for one in (recipe, more))
    assert four.tokens == 4 * once.tokens and four.seconds == pytest.approx(once.seconds, rel=1e-3)


def test_deepspeed_is_for_what_fits_no_other_way(told, monkeypatch):
    """Three layouts, of which memory decides: fsdp; ZeRO where fsdp is refused; offload where ZeRO is too large."""
    recipe, _ = told()
    real = fleet.problem_among
    no_fsdp = lambda one, number: real(one, number) or ("no" if one.parallel.strategy == "fsdp" else None)  # noqa: E731
    monkeypatch.setattr(fleet, "problem_among", no_fsdp)
    needs = {
        str(one.layout): one.share.peak.total for one in fleet.make(recipe, devices.cluster_of("4xH100-80GB")).choices
    }
    assert needs["zero-3, offload cpu"] < min(needs[f"zero-{stage}"] for stage in (1, 2, 3)) < needs["ddp"]

    def best(room):
        cluster = devices.cluster_of("4xH100-80GB", 1, f"{room / fleet.ROOM / 1e6:.6f}MB")
        return fleet.make(recipe, cluster).best.layout

    assert best(needs["ddp"] + 1).strategy == "ddp"
    low = min([needs["ddp"], *(needs[name] for name in needs if "cp " in name)]) - 1
    assert best(low).strategy == "deepspeed" and best(low).offload is None
    offloaded = min(needs["zero-1"], needs["zero-2"], needs["zero-3"]) - 1
    assert best(offloaded).offload == "cpu"
    host = {str(one.layout): one.share.host for one in fleet.make(recipe, devices.cluster_of("4xH100-80GB")).choices}
    monkeypatch.setattr(fleet, "HOST_MEMORY", 4 * (host["zero-3, offload cpu"] - 1))  # of which files spare a part
    monkeypatch.setattr(spread.zero, "AT_ONCE_IN_FILES", 100)
    assert best(offloaded).offload == "nvme"


def test_files_stay_where_the_recipe_has_them(told):
    files = {"strategy": "deepspeed", "zero_stage": 3, "offload": "nvme", "nvme_path": "/disk"}
    recipe, _ = told(parallel=files)
    layout = Layout("deepspeed", replicate=4, zero_stage=3, offload="nvme")
    assert layout.told(recipe).parallel.nvme_path == "/disk"
    assert not any("nvme_path" in word for word in layout.words(recipe))
    assert "parallel.nvme_path=null" in FSDP.words(recipe)


def test_files_are_slower_than_memory(told):
    recipe, shape = told()
    cluster = Cluster(ROUND, 4)
    cpu, files = (Layout("deepspeed", replicate=4, zero_stage=3, offload=one) for one in ("cpu", "nvme"))
    quick, slow = (pace.pace(recipe, shape, one, cluster) for one in (cpu, files))
    numel = sum(one.numel for one in shape.weights)
    assert slow.update - quick.update == pytest.approx(numel * pace.IN_FILES / pace.DISK_BANDWIDTH)


def test_the_simplest_of_the_quick_is_taken(told):
    recipe, _ = told({"type": "lora", "r": 4})
    found = fleet.make(recipe, devices.cluster_of("8xH100-80GB"))
    assert found.best is not None and found.best.layout == Layout("ddp", replicate=8)
    paces = [one.pace.tokens_per_second for one in found.choices if one.fits]
    assert paces == sorted(paces, reverse=True)
    whole, _ = told()
    least = fleet.make(whole, devices.cluster_of("4xH100-80GB"))
    ddp = next(one for one in least.choices if one.layout.strategy == "ddp").share.peak.total
    tight = fleet.make(whole, devices.cluster_of("4xH100-80GB", 1, f"{(ddp - 1) / fleet.ROOM / 1e6:.6f}MB"))
    assert tight.best is not None and tight.best.layout == Layout("fsdp", fsdp=4)
    assert fleet.make(whole, devices.cluster_of("4xH100-80GB", 1, "1MB")).best is None


def test_eight_bits_are_not_shared_out(told):
    recipe, shape = told("lora")
    rounded = Recipe(**recipe.model_dump() | {"model": recipe.model.model_dump() | {"quantization": "bnb_8bit"}})
    found = fleet.choices(rounded, shape, devices.cluster_of("4xH100-80GB"))
    assert {one.layout.strategy for one in found if one.refused is None} == {"ddp", "deepspeed"}


@pytest.mark.parametrize(
    ("adapter", "sections", "said"),
    [
        ("full", {"optimizer": "muon"}, "optimizer=muon updates whole weights"),
        (
            "lora",
            {"train": {"transformers": {"torch_compile": True}}},
            "train.transformers.torch_compile does not go with parallel.strategy=fsdp",
        ),
    ],
)
def test_what_a_recipe_cannot_share_out_is_not_recommended(told, adapter, sections, said):
    recipe, shape = told(adapter, **sections)
    cluster = devices.cluster_of("4xH100-80GB")
    assert {one.layout.strategy for one in fleet.choices(recipe, shape, cluster) if one.refused is None} == {"ddp"}
    assert any(said in line for line in fleet.lines(fleet.make(recipe, cluster)))


@pytest.mark.parametrize(
    ("values", "had", "said"),
    [
        ({"train.row_tokens": "auto"}, {"ddp"}, "train.row_tokens=auto"),
        ({"data.streaming": True}, set(), "4 processes cannot share a stream"),
        ({"train.release_gradients": True}, set(), "before gradients of 4 processes are added"),
    ],
)
def test_what_training_refuses_of_several_processes_is_not_recommended(told, values, had, said):
    recipe = with_values(told()[0], values)
    found = fleet.make(recipe, devices.cluster_of("4xH100-80GB"))
    assert {str(one.layout) for one in found.choices if one.refused is None} == had
    text = "\n".join(fleet.lines(found))
    assert said in text and "row 512 tokens" in text
    assert ("take ddp" if had else "the recipe cannot be trained on 4 devices, for the reasons above") in text
    assert fleet.make(recipe, devices.cluster_of("H100-80GB")).best.layout == ONE


def test_what_is_missing_is_named_and_what_is_on_is_not_advised(told, monkeypatch):
    """With so little memory of its own a machine holds no offloaded state, whatever its devices have."""
    small = devices.cluster_of("4xH100-80GB", 1, "1MB")
    recipe, shape = told()
    last = list(fleet.lines(fleet.make(recipe, small)))[-1]
    assert last == "  more devices or a shorter row or adapter=lora take less"
    plain = fleet.make(with_values(recipe, {"train.activation_checkpointing": False}), small)
    assert "train.activation_checkpointing=true" in list(fleet.lines(plain))[-1]
    never = replace(plain, shape=replace(shape, checkpoints=False))
    assert "train.activation_checkpointing=true" not in list(fleet.lines(never))[-1]
    monkeypatch.setattr(fleet, "problem_among", lambda one, number: None if one.parallel.offload == "cpu" else "no")
    monkeypatch.setattr(fleet, "HOST_MEMORY", -10e9)
    found = fleet.make(recipe, devices.cluster_of("4xH100-80GB"))
    *_, first, second = fleet.lines(found)
    assert found.best is None
    assert re.match(r"nothing fits: zero-3, offload cpu lacks least, 10.0 GB of a machine's own memory, of", first)
    assert second == "  more machines or adapter=lora take less of each"


def test_the_command(told, tmp_path, capsys):
    words = [f"model.path={told()[0].model.path}", "--devices", "2xH100-80GB", "--nodes", "2", "--price", "2.5"]
    assert main(["plan", "sft-full", *words]) == 0
    said = capsys.readouterr().out
    assert "launcher.nnodes=2" in said and "cost of 1e9 tokens" in said and "take ddp: parallel.strategy=ddp" in said
    assert main(["plan", "sft-full", *words, "--json", "--memory", "1MB"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["take"] is None and not any(one["fits"] for one in found["choices"]) and found["devices"] == 4
    for one in found["choices"]:
        assert one["peak_bytes"] == sum(one["parts"].values())
        assert one["cost_of_1e9_tokens"] == pytest.approx(2.5 * 4 * 1e9 / one["tokens_per_second"] / 3600)
    assert main(["plan", "sft-full", *words, "--memory", "1MB"]) == 1
    assert "nothing fits in 0 GB" in capsys.readouterr().out
    assert main(["plan", "sft-full", "--price", "2.5"]) == 1
    assert "--price 2.5 is of devices: say them as" in capsys.readouterr().err


def test_rows_in_pieces_are_proposed_where_they_can_be_had(told):
    recipe, shape = told(train={"row_tokens": 8192})
    cluster = Cluster(ROUND, each=4)
    found = {str(one.layout): one for one in fleet.choices(recipe, shape, cluster)}
    assert found["fsdp 2 cp 2"].refused is None and found["fsdp 1 cp 4"].refused is None
    assert found["fsdp 2 cp 2"].layout.words(recipe) == ("parallel.strategy=fsdp", "parallel.context=2")
    noise = with_values(recipe, {"train.neftune_noise_alpha": 5.0})
    assert all(one.refused for one in fleet.choices(noise, shape, cluster) if one.layout.context > 1)


def test_what_pieces_of_a_row_exchange(told):
    """Queries, keys, values and outputs of a device's tokens, but for its own heads of them, in half precision."""
    recipe, shape = told(train={"row_tokens": 8192, "activation_checkpointing": False})
    slow = Cluster(replace(ROUND, flops=1.0), each=2)  # what goes on beside products is hidden by them
    moved = 8192 / 2 * (1 / 2) * 2 * (shape.queries + shape.keys) * 2
    found = pace.pace(recipe, shape, Layout("fsdp", fsdp=1, context=2), slow, again=0)
    assert found.links == pytest.approx(2 * len(shape.layers) * moved / ROUND.link)
