"""A plan: parameters by hand, bytes by hand, peaks against what torch's allocator gave, and words that do fit."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures_models import tiny_config
from tunesmith.cli.main import main
from tunesmith.defaults import Device, resolve, with_values
from tunesmith.errors import ModelError, RecipeError
from tunesmith.planner import devices, memory, passes, plan, shapes
from tunesmith.quantizations.bnb_4bit import FourBit
from tunesmith.quantizations.torchao import TorchAO
from tunesmith.recipe import Recipe

MAMBA = {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 1, "vocab_size": 64}  # it has no heads
CPU, CUDA = Device("cpu", "CPU", False), Device("cuda", "a CUDA device", True)
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
# of fixtures_models.tiny_config, 400 words: hidden 32, inner 64, two layers, four query and two key heads of 8
WORDS, ATTENTION, MLP, NORMS = 400 * 32, 2 * (2 * 32 * 32 + 2 * 16 * 32), 2 * 3 * 32 * 64, (2 * 2 + 1) * 32
RANKS = {"attention": 2 * 4 * (64 + 48 + 48 + 64), "mlp": 2 * 4 * 3 * 96}  # of r 4: r times inputs and outputs


@pytest.fixture
def recipe(tmp_path):
    """A recipe on a folder that holds a config and no weights; keywords are its sections."""
    tiny_config(400).save_pretrained(tmp_path / "mine")

    def made(device=CPU, adapter="full", optimizer="adamw", **train):
        told = Recipe(
            model=str(tmp_path / "mine"),
            data={"train": "builtin:identity", "max_tokens": 512},
            adapter=adapter,
            optimizer=optimizer,
            train={"device": (device or CPU).type} | train,
        )
        return told if device is None else resolve(told, device).recipe

    return made


@pytest.mark.parametrize(
    ("adapter", "trained"),
    [
        ("full", {"embeddings": WORDS, "attention": ATTENTION, "mlp": MLP, "norms": NORMS}),
        ({"type": "freeze", "num_layers": 1}, {"attention": ATTENTION // 2, "mlp": MLP // 2, "norms": 64}),
        ({"type": "lora", "r": 4}, RANKS),
    ],
    ids=["full", "freeze", "lora"],
)
def test_parameters_of_a_model_without_weights(recipe, adapter, trained):
    beside = RANKS if "r" in adapter else {}
    whole = {"embeddings": WORDS, "attention": ATTENTION, "mlp": MLP, "norms": NORMS}
    found = shapes.shape_of(recipe(adapter=adapter)).counts()
    assert {name: group["all"] for name, group in found.items()} == {n: c + beside.get(n, 0) for n, c in whole.items()}
    assert {name: group["trained"] for name, group in found.items() if group["trained"]} == trained


def test_a_head_of_its_own_is_counted_apart(recipe):
    shape = shapes.shape_of(recipe(), tiny_config(400, tied=False))
    assert shape.counts()["head"] == {"all": WORDS, "trained": WORDS}
    assert not shape.tied and shapes.shape_of(recipe()).tied


def test_other_layers_and_other_heads_are_refused(recipe):
    from transformers import AutoConfig

    told = recipe()
    with pytest.raises(ModelError, match="q_proj.*Phi3ForCausalLM has others"):
        shapes.shape_of(told, tiny_config(400, "phi3"))
    gpt2 = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=64)
    with pytest.raises(ModelError, match="GPT2LMHeadModel has others"):
        shapes.shape_of(told, gpt2)
    mamba = AutoConfig.for_model("mamba", **MAMBA)
    with pytest.raises(ModelError, match="MambaForCausalLM has others"):
        shapes.shape_of(told, mamba)
    model = shapes.adapted(told, tiny_config(400))
    model.config = mamba
    with pytest.raises(ModelError, match="plan reads num_attention_heads .* that of LlamaForCausalLM has none"):
        shapes.of_model(model)
    with pytest.raises(RecipeError, match="objective: plan counts decoders alone, and seq2seq trains an encoder too"):
        shapes.shape_of(Recipe(model=told.model, data=told.data, objective="seq2seq"))


def test_blocks_are_those_of_the_kernels():
    from tunesmith.engine import grouped_attention, head
    from tunesmith.engine import memory as measured

    assert (passes.BLOCK_TOKENS, passes.BLOCK_LOGITS, passes.KEPT_LOGITS) == (
        head.BLOCK_TOKENS,
        head.BLOCK_LOGITS,
        head.KEPT_LOGITS,
    )
    for name in ("BLOCK_SCORES", "SHORTEST_BLOCK", "LONGEST_BLOCK", "KEPT_KEYS"):
        assert getattr(passes, name) == getattr(grouped_attention, name)
    assert (plan.AUTO_TOKENS, plan.AUTO_STEP) == (measured.MOST_TOKENS, measured.STEP)


def test_bytes_that_lie_beneath(recipe):
    """Full training by autocast: float32 weights and two numbers of state; adamw8bit: two bytes, and 8 a block."""
    numel = WORDS + ATTENTION + MLP + NORMS
    told = recipe(CUDA, row_tokens=512)
    assert told.train.bf16 and told.model.dtype == "float32"
    shape = shapes.shape_of(told)
    parts = memory.estimate(told, shape, CUDA).moments[-1].parts
    assert parts["weights"] == 4 * numel + shape.buffer_bytes
    assert parts["gradients"] == 4 * numel and parts["optimizer state"] == 8 * numel + 4 * len(
        shape.weights
    )  # and a count for each
    matrix = shapes.Weight("w", "mlp", (64, 256), 2, True, True)
    small = shapes.Weight("v", "norms", (64,), 4, True, False)
    frozen = shapes.Weight("f", "norms", (64,), 4, False, False)
    one, other = (replace(shape, weights=some) for some in ((matrix,), (small, frozen)))
    told = recipe(optimizer="adamw8bit")
    assert memory.state_bytes(told, one) == 2 * 64 * 256 + 8 * 64
    assert memory.state_bytes(told, other) == 8 * 64
    assert memory.state_bytes(recipe(), one) == 2 * 2 * 64 * 256 + 4  # in the weight's own dtype


def test_a_base_in_fewer_bits(recipe):
    told = recipe(CUDA, {"type": "lora", "r": 4}, row_tokens=512)
    assert told.model.dtype == "bfloat16"
    shape = shapes.shape_of(told)
    plain = memory.estimate(told, shape, CUDA).moments[-1].parts["weights"]
    rounded = with_values(told, {"model.quantization": FourBit(use_double_quant=False)})
    parts = memory.estimate(rounded, shape, CUDA).moments[-1].parts
    assert plain - parts["weights"] == (ATTENTION + MLP) * (16 - 4.5) / 8  # not the words, not the updates
    rows = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)  # each with a scale of float32
    for values in ({"model.frozen_dtype": "int8"}, {"model.quantization": TorchAO()}):
        parts = memory.estimate(with_values(told, values), shape, CPU).moments[-1].parts
        assert plain - parts["weights"] == ATTENTION + MLP - 4 * rows
    assert memory.bits_per_weight(told) is None


@pytest.mark.parametrize(
    "case",
    [
        ("full", True, "adamw", "float32"),
        ("full", False, "adamw", "float32"),
        ("lora", "selective", "adamw", "float32"),
        ("lora", True, "adamw", "float32"),
        ("freeze", False, "adamw", "float32"),
        ("lora", False, "adamw", "bfloat16"),
        ("full", 2, "lion", "float32", "dpo"),
        ("lora", "selective", "adamw8bit", "bfloat16", "simpo"),
        ("full", False, "adamw", "float32", "reward"),
        ("lora", True, "adamw", "bfloat16", "reward"),
    ],
    ids=lambda case: "-".join(map(str, case)),
)
@pytest.mark.parametrize("words", [64, 5000])
def test_a_peak_is_what_the_allocator_gives(case, words, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory_peak

    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "vocab_size": words}
    predicted, measured, _ = memory_peak.compared((*case[:4], False, *case[4:]), memory_peak.SHAPE | sizes, 256, 200)
    for name in ("memory_peak", "measure"):
        sys.modules.pop(name, None)
    assert predicted == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, 2, "selective"])
@pytest.mark.parametrize(
    "adapter", ["full", "lora", {"type": "lora", "target_modules": ["q_proj", "v_proj"]}, "freeze"]
)
def test_what_is_kept_between_the_passes(recipe, adapter, checkpointing, dtype):
    import torch
    from transformers import AutoModelForCausalLM

    from tunesmith.engine import kernels
    from tunesmith.engine import memory as measured
    from tunesmith.engine.activations import checkpoint_activations

    told = recipe(adapter=adapter, row_tokens=700, activation_checkpointing=checkpointing, compile=False)
    told = with_values(told, {"model.dtype": dtype})
    config = tiny_config(400, "qwen2", num_hidden_layers=4, max_position_embeddings=1024)
    model = told.adapter.apply(AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)))
    checkpoint_activations(model, told.train)
    scorer = kernels.choose(model).scorer
    model.train()
    batch = measured.random_batch(model, told.data.max_tokens, 700)
    with measured.LiveTensors() as held:
        found = scorer(model, batch, likelihood=True)
        between = held.live
    run = memory.pass_of(told, shapes.shape_of(told, config), CPU)
    kept = sum(map(run.held, range(4))) + passes.HeadPass(run).kept()
    rotations = 2 * 700 * 8 * run.states  # of all layers
    assert found.logps.requires_grad
    small = 28 * 700  # places, log-probabilities, roots of norms
    assert kept + rotations + small == pytest.approx(between, rel=0.015, abs=6000)


def _alone(told, target):
    """The lowest peak that one change makes."""
    changes = plan._changes(told, CPU)
    return min(plan.make(with_values(told, values), target).memory.peak.total for _, values in changes)


def _train(told, words):
    """The `train` section with the words of that section said."""
    values = dict(word.removeprefix("train.").split("=") for word in words if word.startswith("train."))
    return told.train.model_dump(exclude_unset=True) | {name: json.loads(value) for name, value in values.items()}


def test_what_fits_is_said_and_does_fit(recipe):
    told = recipe(None, row_tokens=2048, per_device_train_batch_size=2)
    target = plan.Target(CPU, 10**12)
    free = plan.make(told, target)
    assert free.fits and not free.words
    peak = free.memory.peak.total
    close = plan.make(told, plan.Target(CPU, peak - 1))
    assert close.fits is False
    assert ("train.activation_checkpointing=true",) in close.words
    assert ("train.per_device_train_batch_size=1",) in close.words and ("train.row_tokens=512",) in close.words
    limit = _alone(told, target) - 1
    (together,) = plan.make(told, plan.Target(CPU, limit)).words  # no change alone is enough
    assert together[:2] == ("train.activation_checkpointing=true", "train.per_device_train_batch_size=1")
    said = Recipe(**told.model_dump(exclude_unset=True) | {"train": _train(told, together)})
    assert len(together) > 1 and plan.make(said, plan.Target(CPU, limit)).fits
    none = plan.make(told, plan.Target(CPU, 1000))
    words, least = none.least
    smallest = Recipe(**told.model_dump(exclude_unset=True) | {"train": _train(told, words[:2])})
    assert none.words == () and least <= plan.make(smallest, target).memory.peak.total < peak
    assert f"least takes {least / 1e6:,.1f} MB: {' '.join(words)}" in "\n".join(plan.lines(none))
    tight = "\n".join(plan.lines(plan.make(told, plan.Target(CPU, peak + 1))))
    assert "0.0 MB are left, less than a tenth" in tight and "a tenth" not in "\n".join(plan.lines(free))
    assert plan.make(told, plan.Target(CPU, None)).fits is None


FOUR_BITS = "model.quantization=bnb_4bit"


@pytest.mark.parametrize("device", [CPU, CUDA], ids=["cpu", "cuda"])
def test_a_base_in_4_bits_is_said_where_it_fits(recipe, device):
    told = recipe(device, {"type": "lora", "r": 4}, row_tokens=512)
    rounded = Recipe(**told.model_dump() | {"model": told.model.model_dump() | {"quantization": "bnb_4bit"}})
    peak = plan.make(rounded, plan.Target(device, 10**12)).memory.peak.total
    assert (FOUR_BITS,) in plan.make(told, plan.Target(device, peak)).words
    assert plan.make(rounded, plan.Target(device, peak)).fits
    assert (FOUR_BITS,) not in plan.make(told, plan.Target(device, peak - 1)).words
    assert " over bnb_4bit, lora" in "\n".join(plan.lines(plan.make(rounded, plan.Target(device, None))))


def test_a_base_in_4_bits_is_for_adapters_beside_it(recipe):
    assert all(FOUR_BITS not in word for word, _ in plan._changes(recipe(None, "freeze"), CUDA))
    held = with_values(recipe(None, "lora"), {"model.frozen_dtype": "int8"})
    assert [word for word, _ in plan._changes(held, CPU) if "model." in word] == [
        f"{FOUR_BITS} model.frozen_dtype=null"
    ]
    rounded = dict(plan._changes(held, CPU))[f"{FOUR_BITS} model.frozen_dtype=null"]
    assert all("model." not in word for word, _ in plan._changes(with_values(held, rounded), CPU))
    unborn = with_values(recipe(None, "lora"), {"model.from_scratch": True})
    assert all(FOUR_BITS not in word for word, _ in plan._changes(unborn, CUDA))


def test_a_change_opens_the_next_and_no_option_is_said_twice(recipe):
    told = recipe(None)
    least, changes = told, list(plan._changes(told, CUDA))
    while changes:
        least = with_values(least, changes[0][1])
        changes = list(plan._changes(least, CUDA))
    limit = plan.make(least, plan.Target(CUDA, 10**12)).memory.peak.total
    (words,) = plan.make(told, plan.Target(CUDA, limit)).words
    assert {"adapter=lora", FOUR_BITS, "data.max_tokens=256"} <= set(words)
    options = [part.partition("=")[0] for word in words for part in word.split()]
    assert len(options) == len(set(options))


def test_what_a_recipe_refuses_is_not_proposed(recipe):
    """DeepSpeed hands an optimizer pieces of weights, and adamw8bit needs whole ones."""
    told = recipe(None)
    shared = Recipe(**told.model_dump(exclude_unset=True) | {"parallel": {"strategy": "deepspeed", "zero_stage": 3}})
    said = [plan.make(one, plan.Target(CUDA, 1000)).least[0] for one in (told, shared)]
    assert ["optimizer.type=adamw8bit" in words for words in said] == [True, False]
    assert all("adapter=lora" in words and FOUR_BITS in words for words in said)


def test_activations_are_computed_again_where_the_model_can(recipe, monkeypatch):
    real, word = plan.shape_of, "train.activation_checkpointing=true"
    assert word in plan.make(recipe(None), plan.Target(CPU, 1000)).least[0]
    monkeypatch.setattr(plan, "shape_of", lambda *given: replace(real(*given), checkpoints=False))
    assert word not in plan.make(recipe(None), plan.Target(CPU, 1000)).least[0]


def test_train_warns_of_what_will_not_fit(told, monkeypatch):
    recipe = with_values(told()[0], {"train.device": "cpu"})
    monkeypatch.setattr(plan, "target_of", lambda recipe, memory: plan.Target(CPU, 1_000_000))
    said = plan.warning(recipe)
    assert said is not None and re.match(r"warning: the plan says that this needs [\d.]+ MB, and 1.0 MB are free", said)
    monkeypatch.setattr(plan, "target_of", lambda recipe, memory: plan.Target(CPU, 10**12))
    assert plan.warning(recipe) is None


def test_a_model_that_is_not_known_has_no_warning(recipe, tmp_path, monkeypatch):
    from transformers import AutoConfig

    AutoConfig.for_model("mamba", **MAMBA).save_pretrained(tmp_path / "mine")
    monkeypatch.setattr(plan, "target_of", lambda recipe, memory: plan.Target(CPU, 1000))
    told = Recipe(model=str(tmp_path / "mine"), data={"train": "builtin:identity"}, adapter="full")
    assert plan.warning(told) is None


def test_rows_that_fit(recipe):
    target = plan.Target(CPU, 10**12)
    told = recipe(None, row_tokens="auto")
    assert plan.make(told, target).recipe.train.row_tokens == plan.AUTO_TOKENS
    whole = plan.make(told, target).memory.peak.total
    found = plan.make(told, plan.Target(CPU, whole // 2))
    tokens = found.recipe.train.row_tokens
    assert found.fits and 512 < tokens < plan.AUTO_TOKENS and tokens % plan.AUTO_STEP == 0
    more = plan.make(with_values(told, {"train.row_tokens": tokens + plan.AUTO_STEP}), plan.Target(CPU, whole // 2))
    assert more.fits is False


def test_sizes_as_they_are_said():
    assert devices.bytes_of("8GB") == 8_000_000_000 and devices.bytes_of("1.5 GiB") == 3 << 29
    assert devices.bytes_of("500mb") == 500_000_000
    for wrong in ("8", "GB", "8 G", "-1GB", "1.2.3GB"):
        with pytest.raises(RecipeError, match="as 8GB or 24GiB"):
            devices.bytes_of(wrong)


def test_the_command(recipe, tmp_path, capsys):
    words = [f"model.path={recipe().model.path}", "train.device=cpu"]
    assert main(["plan", "quickstart", *words, "--memory", "1TB"]) == 0
    assert "it fits in 1,000.00 GB" in capsys.readouterr().out
    assert main(["plan", "quickstart", *words, "--memory", "1MB", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False and found["memory_bytes"] == 1_000_000
    assert found["peak_bytes"] == max(one["bytes"] for one in found["moments"])
    assert found["peak_bytes"] == sum(
        next(one for one in found["moments"] if one["name"] == found["peak_at"])["parts"].values()
    )
    assert main(["plan", "quickstart", "--memory", "8"]) == 1
    assert capsys.readouterr().err.startswith("error: --memory 8: 8GB? It is")
    assert main(["plan", "quickstart", "--memory", "much"]) == 1
    assert capsys.readouterr().err == "error: --memory is a number with a unit, as 8GB or 24GiB (it was 'much')\n"
