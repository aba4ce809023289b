"""Rotary positions that reach further: what is written into a config, and that every way out carries it."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

import fixtures_models
from tunesmith import Recipe, train
from tunesmith.component import pick
from tunesmith.engine import rope
from tunesmith.engine.model import load_config, load_model
from tunesmith.errors import ModelError, RecipeError
from tunesmith.generate.load import load
from tunesmith.recipe import Model
from tunesmith.recipe_rope import RopeScaling
from tunesmith.seams import Export

BASE = 10_000.0
PAIRS = 4  # of a head of 8
ORIGINAL = fixtures_models.CONTEXT
LONG = [1.5, 2.0, 3.0, 4.0]
SAID = {
    "linear": {"rope_type": "linear", "factor": 4},
    "dynamic": {"rope_type": "dynamic", "factor": 4},
    "yarn": {"rope_type": "yarn", "factor": 4, "beta_fast": 20.0},
    "llama3": {"rope_type": "llama3", "factor": 4},
    "longrope": {"rope_type": "longrope", "factor": 4, "long_factor": LONG},
}


@pytest.fixture
def folder(tmp_path):
    return fixtures_models.save_model(tmp_path / "model")


def said(folder, name, **more):
    return Model(path=str(folder), dtype="float32", rope_scaling={**SAID[name], **more})


def frequencies(name, length):
    """The frequencies of each pair by the papers' formulas, in float64."""
    plain = BASE ** (-torch.arange(0, 2 * PAIRS, 2, dtype=torch.float64) / (2 * PAIRS))
    turns = ORIGINAL * plain / (2 * torch.pi)  # in the original context
    if name == "linear":
        return plain / 4
    if name == "dynamic":  # NTK: the base grows with the length
        grown = BASE * (4 * max(length, ORIGINAL) / ORIGINAL - 3) ** (8 / 6)
        return grown ** (-torch.arange(0, 2 * PAIRS, 2, dtype=torch.float64) / (2 * PAIRS))
    if name == "llama3":
        smooth = ((turns - 1) / (4 - 1)).clamp(0, 1)
        return (1 - smooth) * plain / 4 + smooth * plain
    if name == "longrope":
        return plain / torch.tensor(LONG if length > ORIGINAL else [1.0] * 4, dtype=torch.float64)
    pair = torch.arange(PAIRS, dtype=torch.float64)

    def at(number):  # the pair that turns so often, counted as the paper does
        return 8 * torch.log(torch.tensor(ORIGINAL / (number * 2 * torch.pi))) / (2 * torch.log(torch.tensor(BASE)))

    low, high = max(torch.floor(at(20.0)), 0), min(torch.ceil(at(1.0)), 7)
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return plain / 4 * ramp + plain * (1 - ramp)


@pytest.mark.parametrize("length", [8, 700])
@pytest.mark.parametrize("name", SAID)
def test_a_loaded_model_turns_as_the_papers_say(folder, name, length):
    model = load_model(said(folder, name), "cpu")
    places = torch.arange(length)[None]
    cos, _ = model.model.rotary_emb(torch.zeros(1, length, 32), places)
    factor = {
        "yarn": 0.1 * torch.log(torch.tensor(4.0)) + 1,
        "longrope": (1 + torch.log(torch.tensor(4.0)) / torch.log(torch.tensor(float(ORIGINAL)))) ** 0.5,
    }.get(name, 1.0)
    angle = places[0].double()[:, None] * frequencies(name, length)
    torch.testing.assert_close(cos[0, :, :PAIRS].double(), angle.cos() * factor, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", SAID)
def test_the_context_is_the_factor_longer(folder, name):
    config = load_config(said(folder, name))
    assert rope.context_of(config) == 4 * ORIGINAL and rope.is_scaled(config)
    assert not rope.is_scaled(load_config(Model(path=str(folder))))
    assert rope.said(config)[0] == f"positions: {name}, factor 4, for 1,024 tokens"


@torch.no_grad()
def same_logits(one, other):
    ids = torch.randint(0, 300, (1, 400), generator=torch.Generator().manual_seed(0))
    first, second = one(input_ids=ids).logits, other(input_ids=ids).logits
    return torch.equal(first, second)


@pytest.mark.parametrize(("name", "adapter"), [("yarn", "lora"), ("longrope", "lora"), ("dynamic", "full")])
def test_a_run_and_its_exports_carry_it(folder, tmp_path, name, adapter, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure."} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = Recipe(
        model=said(folder, name).model_dump(exclude_unset=True),
        data={"train": "rows.jsonl", "max_tokens": 64, "cache_dir": str(tmp_path / "cache")},
        adapter=adapter,
        optimizer={"learning_rate": 1e-2},
        train={"output_dir": "run", "max_steps": 2},
    )
    run = train(recipe).folder
    model, tokenizer = load(str(run), "cpu")
    assert tokenizer.model_max_length == 4 * ORIGINAL
    assert pick(Export, "merged").write(run, tmp_path / "merged").passed
    config = AutoConfig.from_pretrained(tmp_path / "merged")
    expected = load_config(said(folder, name))
    assert config.rope_parameters == expected.rope_parameters
    assert config.max_position_embeddings == expected.max_position_embeddings
    if adapter == "full":
        assert same_logits(model, AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32))
        return
    own = AutoConfig.from_pretrained(run / "final")  # lies beside the adapter, for whoever loads it
    base = AutoModelForCausalLM.from_pretrained(folder, config=own, dtype=torch.float32)
    assert same_logits(model, PeftModel.from_pretrained(base, run / "final"))
    assert pick(Export, "adapter").write(run, tmp_path / "adapter").passed
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert not same_logits(model, PeftModel.from_pretrained(plain, run / "final"))
    with pytest.raises(ModelError, match="is not a model folder: it is an adapter's. Make one of it with: "):
        load_model(Model(path=str(run / "final")), "cpu")


def test_a_scaled_model_is_scaled_from_what_it_was_made_for(tmp_path):
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 64, "rope_theta": BASE}
    model = fixtures_models.tiny_model(rope_parameters=dict(llama3), max_position_embeddings=1024)
    config = load_config(said(fixtures_models.save_model(tmp_path / "a", model), "yarn"))
    assert config.max_position_embeddings == 256 and config.rope_parameters == {
        "rope_theta": BASE, "rope_type": "yarn", "factor": 4.0, "beta_fast": 20.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": BASE}
    folder = fixtures_models.save_model(tmp_path / "b", fixtures_models.tiny_model(rope_parameters=linear))
    with pytest.raises(RecipeError, match=r"is scaled already \(linear, factor 2\), so say what it was made for"):
        load_config(said(folder, "yarn"))
    assert load_config(said(folder, "yarn", original_max_position_embeddings=32)).max_position_embeddings == 128


def test_layers_with_a_window_keep_their_positions():
    parts = {kind: {"rope_type": "default", "rope_theta": BASE} for kind in ("full_attention", "sliding_attention")}
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=6, rope_parameters=parts, max_position_embeddings=64)
    rope.scale(config, RopeScaling(**SAID["linear"]))
    assert config.rope_parameters["full_attention"]["factor"] == 4 and config.max_position_embeddings == 256
    assert config.rope_parameters["sliding_attention"] == parts["sliding_attention"]


def test_phi3s_own_field_is_the_original_length():
    config = fixtures_models.tiny_config(arch="phi3", original_max_position_embeddings=ORIGINAL)
    rope.scale(config, RopeScaling(**SAID["longrope"], original_max_position_embeddings=128))
    config.standardize_rope_params()
    assert config.rope_parameters["original_max_position_embeddings"] == 128
    assert config.max_position_embeddings == 512


def test_what_has_no_rotary_positions_is_refused():
    with pytest.raises(ModelError, match="a gpt2 model has none: leave it out"):
        rope.scale(AutoConfig.for_model("gpt2"), RopeScaling(**SAID["yarn"]))


def test_factors_are_one_for_each_pair(folder):
    for name, more in (("long_factor", {"long_factor": [1.0]}), ("short_factor", {"short_factor": [1.0] * 5})):
        with pytest.raises(RecipeError, match=rf"{name} has \d numbers, and a head of this model turns 4 pairs"):
            load_config(said(folder, "longrope", **more))


def test_dynamic_is_not_trained_on_longer_rows(folder):
    config = load_config(said(folder, "dynamic"))
    rope.refuse_longer(config, ORIGINAL)
    rope.refuse_longer(load_config(said(folder, "yarn")), ORIGINAL + 1)
    with pytest.raises(RecipeError, match=f"a run on {ORIGINAL + 1} tokens could not be repeated: set data.max_tokens"):
        rope.refuse_longer(config, ORIGINAL + 1)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"factor": 2}, "factor is set but rope_type is not"),
        ({"rope_type": "yarn"}, "rope_type=yarn needs factor"),
        ({"rope_type": "longrope", "factor": 2}, "needs long_factor"),
        ({"rope_type": "linear", "factor": 2, "beta_fast": 3}, "beta_fast is no option of rope_type=linear"),
        ({"rope_type": "yarn", "factor": 2, "beta_slow": 40}, "beta_fast must be above beta_slow"),
        ({"rope_type": "llama3", "factor": 2, "high_freq_factor": 0.5}, "high_freq_factor must be above low_freq"),
        ({"rope_type": "ntk", "factor": 2}, "must be 'linear', 'dynamic', 'yarn', 'llama3' or 'longrope'"),
        ({"rope_type": "yarn", "factor": 1}, "must be greater than 1"),
    ],
)
def test_what_does_not_go_together(options, problem):
    with pytest.raises(RecipeError, match=rf"model\.rope_scaling.*{problem}"):
        Recipe(model={"path": "builtin:tiny", "rope_scaling": options}, data={"train": "builtin:identity"})


def test_a_model_that_a_script_brings_is_not_changed(folder, tmp_path):
    recipe = Recipe(model=said(folder, "yarn").model_dump(exclude_unset=True), data={"train": "builtin:identity"})
    with pytest.raises(RecipeError, match="model.rope_scaling: yarn would change the model that was given"):
        train(recipe, model=fixtures_models.tiny_model())
