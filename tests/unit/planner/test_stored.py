"""A base in few bits, stored or rounded: the bytes that a plan says are those of the model that is loaded."""

import pytest

from fixtures_models import save_model, tiny_model
from fixtures_packed import GROUP, WAYS, save_packed
from tunesmith.defaults import Device, resolve
from tunesmith.engine import quantised
from tunesmith.engine.model import load_model
from tunesmith.planner import memory, others, plan, shapes
from tunesmith.planner.stored import Bits, Stored
from tunesmith.recipe import Recipe

CPU = Device("cpu", "CPU", False)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "scale": 0.1}
LAYER = "model.layers.1.mlp.down_proj"
Q, DOWN = "self_attn.q_proj.weight", "mlp.down_proj.weight"
LEFT_OUT = {  # how each method's config says that these two are plain
    "gptq": {"dynamic": {"-:.*q_proj": {}, r"-:model\.layers\.\d+\.mlp\.down_proj": {}}},
    "awq": {"modules_to_not_convert": ["q_proj", "down_proj"]},
    "compressed-tensors": {"ignore": ["re:.*q_proj$", "model.layers.0.mlp.down_proj", LAYER]},
}


def planned(folder, **model):
    """A resolved recipe with an update of two layers beside the model, and its shape."""
    adapter = {"type": "lora", "r": 4, "target_modules": ["q_proj", "up_proj"]}
    model = {"path": str(folder), "dtype": "bfloat16"} | model
    train = {"device": "cpu", "row_tokens": 64}
    recipe = Recipe(model=model, data={"train": "builtin:identity", "max_tokens": 64}, adapter=adapter, train=train)
    recipe = resolve(recipe, CPU).recipe
    return recipe, shapes.shape_of(recipe)


def held(recipe):
    """Bytes of the loaded model, its scales and zeros included."""
    model = load_model(recipe.model, "cpu")
    return sum(one.nbytes for one in (*model.parameters(), *model.buffers())), quantised.held_bytes(model)[0]


def said(recipe, shape):
    """Bytes of the model as the plan has them, and of them those in few bits."""
    parts = memory.estimate(recipe, shape, CPU).moments[-1].parts
    update = sum(one.nbytes for one in shape.weights if one.trained)
    few = sum(one.bytes_in(memory.bits_per_weight(recipe)) for one in shape.weights if one.in_layers)
    return parts["weights"] - update, few


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("left_out", [False, True], ids=["all", "but two"])
def test_a_stored_base_is_counted_as_it_is_held(method, left_out, tmp_path):
    plain, words = ((Q, DOWN), LEFT_OUT[method]) if left_out else ((), {})
    if method == "compressed-tensors":
        group = {"num_bits": 4, "strategy": "group", "group_size": GROUP, "symmetric": False}
        words = {**words, "config_groups": {"0": {"targets": ["Linear"], "weights": group}}}
    folder = save_packed(tmp_path, tiny_model(**SIZES), method, plain, **words)
    recipe, shape = planned(folder)
    whole, few = held(recipe)
    whole_said, few_said = said(recipe, shape)
    assert whole_said == whole
    left = sum(one.nbytes for one in shape.weights if one.in_layers and one.stored is None)
    assert few_said - left == few and bool(left) == left_out
    assert shape.stored_in == method
    assert others.frozen_bytes(str(folder), "bfloat16", None) == whole
    assert f"over {method}, as stored" in "\n".join(plan.lines(plan.make(recipe, plan.Target(CPU, None))))


@pytest.mark.parametrize("options", [{"nbits": 4}, {"nbits": 8, "group_size": 16}], ids=["4", "8"])
def test_a_base_that_is_rounded_is_counted_by_its_options(options, tmp_path):
    save_model(tmp_path, tiny_model(**SIZES))
    recipe, shape = planned(tmp_path, quantization={"type": "hqq"} | options)
    assert said(recipe, shape) == held(recipe)


def test_a_reference_that_is_widened_first_is_counted_as_it_is_held_then(tmp_path):
    plain = save_model(tmp_path / "plain", tiny_model(**SIZES))
    folder = save_packed(tmp_path / "packed", tiny_model(**SIZES), "awq")
    expected = others.frozen_bytes(str(plain), "bfloat16", "int8")
    assert others.frozen_bytes(str(folder), "bfloat16", "int8") == expected


def test_other_bits_are_not_proposed_to_a_stored_base(tmp_path):
    recipe, _ = planned(save_packed(tmp_path, tiny_model(**SIZES), "gptq"))
    planner = plan._Planner(plan.Target(CPU, 1000), None)
    assert planner.plan(recipe).shape.stored_in == "gptq"
    words = [word for word, _ in planner.changes(recipe)]
    assert words and not any("model." in word for word in words)


WEIGHTS = {"num_bits": 4, "strategy": "group", "group_size": 128}


def groups(**weights):
    return {"config_groups": {"0": {"targets": ["Linear"], "weights": weights}}}


@pytest.mark.parametrize(
    ("method", "words", "expected"),
    [
        ("gptq", {"bits": 4, "group_size": 128}, Bits(4 + 16 / 128)),  # zeros are one number
        ("gptq", {"bits": 4, "group_size": 128, "sym": False}, Bits(4 + 24 / 128)),
        ("gptq", {"bits": 3, "group_size": 128, "desc_act": True}, Bits(4 + 16 / 128, column=32)),
        ("gptq", {"bits": 8, "group_size": -1, "desc_act": True}, Bits(8, row=16)),
        ("gptq", {"bits": 4, "group_size": 128, "dynamic": {".*down": {"bits": 8, "group_size": 32}}}, Bits(8.5)),
        ("gptq", {"bits": 4, "group_size": 128, "dynamic": {"-:.*down": {}}}, None),
        ("gptq", {"bits": 4, "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj"]]}, None),
        ("awq", {"group_size": 64}, Bits(4 + 24 / 64)),
        ("awq", {"group_size": 64, "zero_point": False}, Bits(4 + 16 / 64)),
        ("awq", {"group_size": 64, "modules_to_not_convert": ["model.layers.1"]}, None),
        ("awq", {"group_size": 64, "modules_to_not_convert": ["model.layers.11"]}, Bits(4 + 24 / 64)),
        ("compressed-tensors", groups(**WEIGHTS), Bits(4 + 16 / 128)),
        ("compressed-tensors", groups(**WEIGHTS, actorder="group"), Bits(4 + 16 / 128, column=32)),
        ("compressed-tensors", groups(num_bits=8, type="float", strategy="channel"), Bits(8, row=16)),
        ("compressed-tensors", groups(num_bits=8, type="float", strategy="tensor"), Bits(8)),
        ("compressed-tensors", groups(**WEIGHTS) | {"ignore": ["lm_head", LAYER]}, None),
        ("compressed-tensors", {"config_groups": {"0": {"targets": ["re:.*q_proj"], "weights": WEIGHTS}}}, None),
        ("bitsandbytes", {"load_in_4bit": True}, Bits(4.5)),
        ("bitsandbytes", {"load_in_8bit": True}, Bits(8, row=32)),
        ("bitsandbytes", {"load_in_4bit": True, "llm_int8_skip_modules": ["down_proj"]}, None),
        ("torchao", {"quant_type": {}}, Bits(8, row=32)),
    ],
)
def test_a_config_says_the_bits_of_a_layer(method, words, expected):
    assert Stored(method, words).bits(LAYER) == expected
