"""Every adapter, optimizer and quantization that there is, as a plan takes it: nothing of them has numbers here."""

import json
import re
import sys
from pathlib import Path

import pytest

from fixtures_models import tiny_config
from tunesmith.component import all_of
from tunesmith.defaults import Device, resolve, with_values
from tunesmith.optimizers._groups import head_dim
from tunesmith.planner import memory, plan, shapes
from tunesmith.recipe import Recipe
from tunesmith.seams import Adapter, Optimizer, Quantization

CPU = Device("cpu", "CPU", False)
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
OPTIONS = {"fourierft": {"n_frequency": 100}, "miss": {"r": 8}}  # what goes with layers so small
ADAPTERS = [{"type": name} | OPTIONS.get(name, {}) for name in all_of(Adapter)] + [
    {"type": "lora", "r": 4, **options}
    for options in (
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": [3, 4]},
    )
]
LAYERS = 4


def told(adapter, **train):
    """A resolved recipe of 200 tokens, and the config of its model: with biases, which bitfit trains."""
    config = tiny_config(400, "qwen2", num_hidden_layers=LAYERS)
    train = {"device": "cpu", "compile": False, "row_tokens": 200} | train
    data = {"train": "builtin:identity", "max_tokens": 200}
    recipe = Recipe(model="builtin:tiny", data=data, adapter=adapter, train=train)
    return resolve(recipe, CPU).recipe, config


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda one: "-".join(map(str, one.values())))
def test_every_adapter_has_a_shape(adapter):
    """What it trains is what it trains of a model with numbers, and every layer behind it has a backward pass."""
    from transformers import AutoModelForCausalLM

    recipe, config = told(adapter)
    shape = shapes.shape_of(recipe, config)
    assert config.num_hidden_layers == LAYERS
    model = recipe.adapter.apply(AutoModelForCausalLM.from_config(config))
    own = {name: one.numel() for name, one in model.named_parameters() if one.requires_grad}
    assert {one.name: one.numel for one in shape.weights if one.trained} == own and own
    assert shape.buffer_bytes == sum(one.nbytes for one in model.buffers())
    first = next(number for number, layer in enumerate(shape.layers) if layer.learns)
    assert all(layer.learns for layer in shape.layers[first:])
    assert memory.estimate(recipe, shape, CPU).peak.total > shape.buffer_bytes


@pytest.mark.parametrize("adapter", ADAPTERS[: len(all_of(Adapter))], ids=lambda one: one["type"])
def test_a_peak_with_any_adapter_is_near_what_the_allocator_gives(adapter, monkeypatch):
    """Within a fifth: of updates that are neither low-rank nor a weight's own only the input is counted."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory_peak

    recipe, config = told(adapter)
    predicted = memory.estimate(recipe, shapes.shape_of(recipe, config), CPU).peak.total
    measured = memory_peak.measured(recipe, config)
    for module in ("memory_peak", "measure"):
        sys.modules.pop(module, None)
    assert predicted == pytest.approx(measured, rel=0.2)


def test_a_run_with_new_blocks_is_warned_of_and_not_stopped(tmp_path, monkeypatch):
    tiny_config(400).save_pretrained(tmp_path)
    recipe = with_values(told("llama_pro")[0], {"model.path": str(tmp_path)})
    monkeypatch.setattr(plan, "target_of", lambda recipe, memory: plan.Target(CPU, 1_000_000))
    assert re.match(r"warning: the plan says that this needs [\d.]+ MB", plan.warning(recipe) or "")


@pytest.mark.parametrize("options", [{}, {"mode": "ratio", "update_ratio": 0.3}], ids=["", "ratio"])
@pytest.mark.parametrize("adapter", ["full", "freeze"])
@pytest.mark.parametrize("name", all_of(Optimizer))
def test_a_plan_has_the_state_that_an_optimizer_says(name, adapter, options):
    """Of a model with numbers, which tests/contracts/test_optimizers.py compares with what it does keep."""
    from transformers import AutoModelForCausalLM

    if options and name != "badam":
        pytest.skip("an option of badam's")
    recipe, config = told(adapter)
    recipe = with_values(recipe, {"optimizer": all_of(Optimizer)[name](learning_rate=1e-3, **options)})
    model = recipe.adapter.apply(AutoModelForCausalLM.from_config(config))
    said = recipe.optimizer.state_bytes(model.named_parameters(), head_dim(model))
    assert memory.state_bytes(recipe, shapes.shape_of(recipe, config)) == said
    if name in ("badam", "adam_mini"):
        assert 0 < said < sum(2 * one.nbytes for one in model.parameters() if one.requires_grad)


@pytest.mark.parametrize("name", all_of(Quantization))
def test_every_quantization_says_its_bits(name):
    each, row = all_of(Quantization)[name]().bits_per_weight()
    expected = {"bnb_4bit": (4.127, 0), "hqq": (4.5, 0)}.get(name, (8, 32))
    assert (each, row) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("compute", ["once", "step"])
@pytest.mark.parametrize("begins", [True, False])
def test_an_adapter_that_training_began_with_stays_where_it_is_the_reference(begins, compute):
    """As much again as is trained, as `engine/initial.py` keeps it; one that begins with nothing is turned off."""
    from transformers import AutoModelForCausalLM

    from tunesmith.engine import initial

    recipe, config = told({"type": "lora", "r": 4, "init_lora_weights": not begins})
    sections = {"objective": "dpo", "reference": {"compute": compute}}
    recipe = resolve(Recipe(**recipe.model_dump(exclude_unset=True) | sections), CPU).recipe
    model = recipe.adapter.apply(AutoModelForCausalLM.from_config(config))
    before = sum(one.nbytes for one in model.parameters())
    initial.keep(model, "default")
    kept = sum(one.nbytes for one in model.parameters()) - before
    parts = memory.estimate(recipe, shapes.shape_of(recipe, config), CPU).moments[0].parts
    assert parts.get("other models", 0) == kept * begins


@pytest.mark.parametrize(
    ("sections", "copies"),
    [
        ({"objective": "distill"}, 1),
        ({"objective": {"type": "distill", "top_k": 8}}, 0),  # its words are made once
        ({"objective": {"type": "distill", "top_k": 8}, "teacher": {"compute": "step"}}, 1),
        ({"objective": "dpo", "reference": {"compute": "step"}}, 0),  # the adapter is turned off
        ({"objective": "dpo", "reference": {"compute": "step", "model": "{other}"}}, 1),
        ({"objective": "dpo", "reference": {"compute": "step", "model": "{other}", "frozen_dtype": "int8"}}, 0.25),
    ],
)
def test_a_frozen_model_beside_is_counted_where_it_is_asked_in_every_step(sections, copies, tmp_path):
    """A model of another size, in float32: all of it, or a byte for a weight of its layers and four for other ones."""
    from transformers import AutoModelForCausalLM

    other = tiny_config(400, hidden_size=48, intermediate_size=96)
    other.save_pretrained(tmp_path)
    named = json.loads(json.dumps(sections).replace("{other}", str(tmp_path)))
    if named["objective"] != "dpo":
        named["teacher"] = named.get("teacher", {}) | {"model": str(tmp_path)}
    recipe, config = told("lora")
    recipe = resolve(Recipe(**recipe.model_dump(exclude_unset=True) | named), CPU).recipe
    model = AutoModelForCausalLM.from_config(other)
    layers = [one for name, one in model.named_parameters() if name.endswith("proj.weight")]
    whole = sum(one.nbytes for one in [*model.parameters(), *model.buffers()])
    expected = {0: 0, 1: whole}.get(copies, whole - sum(3 * one.numel() - 4 * len(one) for one in layers))
    parts = memory.estimate(recipe, shapes.shape_of(recipe, config), CPU).moments[0].parts
    assert parts.get("other models", 0) == expected
