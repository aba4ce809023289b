"""What adapters promise beyond their contract: peft's own numbers, plain LoRA from PiSSA, experts, stacks."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures_models import save_model, tiny_model
from tunesmith import Recipe, adapted, train
from tunesmith.adapters.lora import LoRA
from tunesmith.adapters.oft import OFT
from tunesmith.engine import checkpoint, initial, kernels
from tunesmith.engine.compat import peft_warnings
from tunesmith.errors import ModelError, RecipeError, RunError
from tunesmith.exports.adapter import PlainAdapter
from tunesmith.exports.merged import Merged
from tunesmith.generate.load import load
from tunesmith.optimizers.adamw import AdamW

IDS = torch.arange(24).view(2, 12) * 5 % 300
MOE = {"arch": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
TAKING = ["pissa", "pissa_niter_4", "olora"]


def results(model):
    """Logits, and the gradients of all that is trained."""
    model.zero_grad()
    found = model(input_ids=IDS, labels=IDS)
    found.loss.backward()
    return found.logits.detach(), {name: one.grad for name, one in model.named_parameters() if one.requires_grad}


def shaken(model, seed=0, size=0.05):
    """A model whose trained weights are all other numbers than at first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.add_(torch.randn(one.shape, generator=generator), alpha=size)
    return model


@pytest.mark.parametrize(
    "said",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"use_dora": True, "init_lora_weights": "pissa"},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "pissa_niter_4"},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"k_proj": 3}},
        {"exclude_modules": ("o_proj", "gate_proj")},
        {"layers_to_transform": (1,)},
        {"trainable_token_indices": (7, 9)},
        {"target_modules": ("q_proj", "k_proj", "v_proj"), "lora_bias": True},
        {"target_modules": r".*layers\.0\..*proj"},
        {"modules_to_save": ("embed_tokens",)},
    ],
    ids=str,
)
def test_every_option_computes_what_peft_does(said):
    torch.manual_seed(1)
    model = shaken(LoRA(r=4, **said).apply(tiny_model(arch="qwen2", scale=0.1))).train()
    expected, gradients = results(model)
    chosen = kernels.choose(model)
    assert "layers run as they are" not in " ".join(chosen.notes)
    model.set_attn_implementation("sdpa")
    found, ours = results(model.train())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == ours.keys() and len(gradients) > 0
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)


def test_patterns_give_ranks_and_scales_of_their_own():
    said = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3}, "use_rslora": True}
    model = LoRA(r=4, lora_alpha=8, **said).apply(tiny_model())
    layer = model.base_model.model.model.layers[0].self_attn
    ranks = {name: layer.get_submodule(name).lora_A["default"].weight.shape[0] for name in ("q_proj", "k_proj")}
    assert ranks == {"q_proj": 2, "k_proj": 4}
    scales = {name: layer.get_submodule(name).scaling["default"] for name in ("q_proj", "k_proj", "v_proj")}
    assert scales == {"q_proj": 8 / 2**0.5, "k_proj": 3 / 2, "v_proj": 8 / 2}


def test_layers_are_chosen_by_number_and_left_out_by_name():
    model = LoRA(layers_to_transform=(1,), exclude_modules=("q_proj",)).apply(tiny_model())
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    assert len(trained) == 2 * 6 and all(".layers.1." in name and "q_proj" not in name for name in trained)


def test_b_matrices_have_a_rate_of_their_own():
    adapter = LoRA(loraplus_lr_ratio=16)
    model = adapter.apply(tiny_model())
    groups = AdamW(learning_rate=1e-3).build(model, adapter.factors(model)).param_groups
    named = {id(one): name for name, one in model.named_parameters()}
    rates = {group["lr"]: {named[id(one)].split(".")[-3] for one in group["params"]} for group in groups}
    assert rates == {1e-3: {"lora_A"}, 16e-3: {"lora_B"}}


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (
            {"init_lora_weights": "loftq"},
            "loftq is not for here: it fits .* Say true or gaussian, or on a base",
        ),
        ({"init_lora_weights": "eva"}, "eva is not for here"),
        ({"init_lora_weights": "pissa_niter_x"}, "init_lora_weights"),
    ],
)
def test_what_it_cannot_begin_with_is_refused_with_the_reason(said, problem):
    with pytest.raises(RecipeError, match=problem):
        Recipe(model={"path": "m"}, data={"train": "d"}, adapter=said)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"target_modules": ("nothing",)}, "no module of LlamaForCausalLM is 'nothing'. Known: all-linear, down_proj"),
        ({"target_modules": ("q_proj", "v_prj")}, "adapter.target_modules: .* is 'v_prj'. Did you mean 'v_proj'"),
        ({"target_modules": "q_proj,v_proj"}, r"A list is said as \[q_proj,v_proj\]\."),
        ({"target_modules": "al"}, "no module .* is 'al'. .*all-linear"),
        ({"lora_bias": True}, "adapter: `lora_bias=True` was passed"),
        ({"rank_pattern": {"q_prj": 2}}, "adapter: .*rank_pattern keys did not match.*q_prj"),
        ({"exclude_modules": ("q_prj",)}, "adapter: .*exclude_modules"),
        ({"target_parameters": ("experts.up",)}, "adapter: .*experts.up"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "adapter: "),
    ],
)
def test_what_peft_would_pass_over_is_refused(said, problem):
    with pytest.raises(RecipeError, match=problem):
        LoRA(**said).apply(tiny_model())


@pytest.mark.parametrize("way", TAKING)
@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3}}]
)
def test_what_begins_with_parts_of_the_weights_is_saved_as_plain_lora_of_the_models_own(way, more, tmp_path):
    from peft import PeftConfig, PeftModel

    own = tiny_model(scale=0.1)
    before = own(input_ids=IDS).logits.detach()
    adapter = LoRA(r=4, init_lora_weights=way, **more)
    model = adapter.apply(tiny_model(scale=0.1))
    changed = model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert (changed - own.model.layers[0].mlp.up_proj.weight).abs().max() > 1e-2
    torch.testing.assert_close(model(input_ids=IDS).logits, before, rtol=1e-4, atol=1e-4)
    shaken(model)
    expected = model(input_ids=IDS).logits.detach()
    assert (expected - before).abs().max() > 0.1
    checkpoint.save_weights(model, tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).init_lora_weights is True
    with peft_warnings():
        plain = PeftModel.from_pretrained(tiny_model(scale=0.1), tmp_path)
    torch.testing.assert_close(plain(input_ids=IDS).logits, expected, rtol=1e-3, atol=1e-3)
    state = {name: one.clone() for name, one in model.named_parameters()}
    again = adapter.apply(tiny_model(scale=0.1))
    checkpoint.load_weights(again, tmp_path)
    if way != "pissa_niter_4":  # whose decomposition is random, as a run's seed makes it
        assert all(torch.equal(one, state[name]) for name, one in again.named_parameters())
    torch.testing.assert_close(again(input_ids=IDS).logits, expected, rtol=1e-3, atol=1e-3)


def test_the_model_without_what_it_learned_is_the_one_that_training_began_with():
    own = tiny_model(scale=0.1)
    model = shaken(LoRA(r=4, init_lora_weights="pissa").apply(tiny_model(scale=0.1)))
    assert initial.is_kept(model)
    model.set_adapter(initial.NAME)
    torch.testing.assert_close(model(input_ids=IDS).logits, own(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)


def test_fused_experts_are_adapted_and_it_is_said():
    adapter = LoRA(r=2)
    model = adapter.apply(tiny_model(scale=0.1, **MOE))
    (said,) = adapter.notes(model)
    assert said.endswith("experts.down_proj, experts.gate_up_proj")
    # each of 2 layers: ranks of 2 of 4 experts, of 16 -> 32 and 32 -> 2 * 16
    assert adapted.trained_by_part(model)["experts"] == 2 * 2 * 4 * ((16 + 32) + (32 + 32))
    assert not any(".gate." in name for name, one in model.named_parameters() if one.requires_grad)
    for other in ({"lora_dropout": 0.1}, {"use_dora": True}, {"init_lora_weights": "pissa"}):
        adapter = LoRA(r=2, **other)
        (said,) = adapter.notes(adapter.apply(tiny_model(scale=0.1, **MOE)))
        assert "stay as they are" in said
    adapter = LoRA(target_parameters=("experts.down_proj",))
    assert adapter.notes(adapter.apply(tiny_model(scale=0.1, **MOE))) == ()
    assert LoRA().notes(LoRA().apply(tiny_model())) == ()


def test_what_is_trained_is_counted_by_part():
    model = LoRA(r=2, modules_to_save=("lm_head", "norm")).apply(tiny_model(tied=False, scale=0.1))
    # 2 layers of rank 2: q and o 32 -> 32, k and v 32 -> 16; gate and up 32 -> 64, down 64 -> 32
    attention, mlp = 2 * 2 * (64 + 64 + 48 + 48), 2 * 2 * 3 * 96
    vocab = model.config.vocab_size
    assert adapted.trained_by_part(model) == {"norms": 5 * 32, "attention": attention, "mlp": mlp, "head": 32 * vocab}
    whole = tiny_model()
    assert adapted.trained_by_part(whole)["embeddings"] == 32 * vocab


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Makes runs of a few steps on one model."""
    folder = tmp_path_factory.mktemp("stacks")
    save_model(folder / "llama", tiny_model(scale=0.1))
    save_model(folder / "moe", tiny_model(scale=0.1, **MOE))
    rows = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure!"} for i in range(12)]
    (folder / "rows.json").write_text(json.dumps(rows))
    pairs = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No."} for i in range(12)]
    (folder / "pairs.json").write_text(json.dumps(pairs))

    def run(name, adapter, model="llama", data="rows.json", **sections):
        if not (folder / name).exists():
            train(
                Recipe(
                    model={"path": str(folder / model), "dtype": "float32"},
                    data={"train": str(folder / data), "max_tokens": 64, "cache_dir": str(folder / "cache")},
                    adapter=adapter if "start_from" in adapter else {"r": 4, **adapter},
                    optimizer={"learning_rate": 2e-2},
                    train={
                        "max_steps": 4,
                        "row_tokens": 256,
                        "save_steps": 2,
                        "save_total_limit": 9,
                        "device": "cpu",
                        "output_dir": str(folder / name),
                    },
                    **sections,
                )
            )
        return folder / name

    run.folder = folder
    return run


def test_training_goes_on_from_an_adapter_with_its_options(runs):
    first = runs("first", {})
    second = runs("second", {"start_from": str(first)})
    config = json.loads((second / "final/adapter_config.json").read_text())
    assert config["r"] == 4 and not (second / "final/merged_adapters.json").exists()
    losses = [json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss"] for run in (first, second)]
    assert losses[1] < losses[0] - 0.1
    with pytest.raises(RecipeError, match=r"adapter\.r: .* was trained with 4"):
        LoRA(r=8, start_from=str(first)).apply(tiny_model())
    with pytest.raises(RecipeError, match=r"is of type lora: say that in adapter\.type"):
        OFT(start_from=str(first)).apply(tiny_model())
    with pytest.raises(ModelError, match="nowhere is no adapter"):
        LoRA(start_from="nowhere").apply(tiny_model())


def test_a_stack_is_merged_in_order_and_found_again(runs, tmp_path):
    first, other = runs("first", {}), runs("second", {"start_from": str(runs("first", {}))})
    third = runs("third", {"start_from": (str(first), str(other))})
    below = json.loads((third / "final/merged_adapters.json").read_text())
    assert [one["folder"] for one in below] == [str(first / "final")]
    # by hand: the base, the first merged, the third beside it
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(runs.folder / "llama")
    with peft_warnings():
        for place in (first, third):
            model = PeftModel.from_pretrained(model, place / "final").merge_and_unload()
    expected = model(input_ids=IDS).logits
    found, _ = load(str(third), "cpu")
    torch.testing.assert_close(found(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert Merged(device="cpu").write(third, tmp_path / "merged").passed
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(whole(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(RunError, match="on top of merged adapters"):
        PlainAdapter(device="cpu").write(third, tmp_path / "plain")
    assert Merged(device="cpu", adapters=(str(third),)).write(first, tmp_path / "both").passed
    both = AutoModelForCausalLM.from_pretrained(tmp_path / "both")
    torch.testing.assert_close(both(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="name those first"):
        Merged(device="cpu", adapters=(str(third),)).write(other, tmp_path / "wrong")


def test_the_ground_of_an_adapter_is_known_by_its_weights_wherever_it_lies(runs, tmp_path):
    import shutil

    first = runs("first", {})
    third = runs("on first", {"start_from": (str(first), str(first))})
    shutil.copytree(first, tmp_path / "moved")
    assert Merged(device="cpu", adapters=(str(third),)).write(tmp_path / "moved", tmp_path / "both").passed


def test_what_is_said_in_place_of_loftq_can_be_had(runs):
    """The refusal names what any base takes, and what one takes that is not in few bits."""
    from tunesmith.adapters.lora import BEGINNINGS
    from tunesmith.quantizations.bnb_4bit import FourBit

    anywhere, plain = BEGINNINGS.split(", or on a base that is not in few bits ")
    for names, is_refused in ((anywhere, False), (plain, True)):
        for name in names.replace(" or ", ", ").split(", "):
            adapter = LoRA(init_lora_weights=True if name == "true" else name)
            assert (adapter.refuses(FourBit()) is not None) == is_refused, name


def test_an_adapter_whose_ground_was_changed_is_refused(runs, tmp_path):
    import shutil

    runs("third", {"start_from": (str(runs("first", {})), str(runs("first", {})))})
    for name in ("first", "third"):
        shutil.copytree(runs.folder / name / "final", tmp_path / name)
    file, weights = tmp_path / "third/merged_adapters.json", tmp_path / "first/adapter_model.safetensors"
    (one,) = json.loads(file.read_text())
    file.write_text(json.dumps([one | {"folder": str(tmp_path / "first")}]))
    load(str(tmp_path / "third"), "cpu")
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(ModelError, match="whose weights are others now"):
        load(str(tmp_path / "third"), "cpu")


@pytest.mark.parametrize("adapter", [{"init_lora_weights": "pissa"}, {"start_from": "first"}], ids=str)
def test_preferences_are_measured_from_what_training_begins_with(adapter, runs):
    if "start_from" in adapter:
        adapter = {"start_from": str(runs("first", {}))}
    name = f"dpo-{next(iter(adapter))}"
    run = runs(name, adapter, data="pairs.json", objective="dpo", reference={"compute": "step"})
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(line["loss"] - 0.6931472) < 1e-4, "log 2: nothing is learned yet"


def test_a_mixture_is_trained_saved_loaded_and_merged(runs, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = runs("mixture", {}, model="moe")
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    model, _ = load(str(run), "cpu")
    with peft_warnings():
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(runs.folder / "moe"), run / "final")
    torch.testing.assert_close(plain(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert Merged(device="cpu").write(run, tmp_path / "merged").passed


VARIANTS = {
    "pissa": {"init_lora_weights": "pissa_niter_4"},
    "dora": {"use_dora": True, "use_rslora": True},
    "tokens": {"trainable_token_indices": [5, 300], "loraplus_lr_ratio": 4},
    "embeddings": {"modules_to_save": ["embed_tokens"], "rank_pattern": {"q_proj": 2}},
    "vera": {"type": "vera", "r": 8, "save_projection": False},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_with_options_goes_on_bit_for_bit_and_is_merged(name, runs, tmp_path):
    import shutil

    from tunesmith import resume

    said = VARIANTS[name]
    run = runs(f"variant-{name}", said)
    assert Merged(device="cpu").write(run, tmp_path / "merged").passed
    assert Merged(device="cpu").write(run / "checkpoints/step-2", tmp_path / "earlier").passed
    shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/final")
    shutil.rmtree(tmp_path / "again/checkpoints/step-4")
    again = resume(tmp_path / "again").folder
    expected, found = (load_file(one / "final/adapter_model.safetensors") for one in (run, again))
    assert expected.keys() == found.keys()
    assert all(torch.equal(one, found[key]) for key, one in expected.items())
