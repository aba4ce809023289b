"""Weights held in numbers: they are what those who stored them read, and so are the products and gradients beside them.

`golden/packed.safetensors` was made by AutoGPTQ, AutoAWQ, compressed-tensors and hqq (golden/make_packed.py).
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fixtures_models import save_model, tiny_lora, tiny_model
from fixtures_packed import WAYS, save_packed, words
from numerics.test_quantised import SIZES, close, learned
from tunesmith.engine import layers, quantised
from tunesmith.engine.model import load_model, widened_model
from tunesmith.engine.packed import Numbers, Packed, PackedLinear, unpack
from tunesmith.engine.packed_loading import FORMATS
from tunesmith.quantizations import _half_quadratic
from tunesmith.recipe import Model

GOLDEN = load_file(Path(__file__).parents[1] / "golden/packed.safetensors")
STORED = sorted({name.rpartition(".")[0] for name in GOLDEN if not name.startswith("hqq")})


def parts_of(name):
    return {key.removeprefix(f"{name}."): value for key, value in GOLDEN.items() if key.rpartition(".")[0] == name}


@pytest.mark.parametrize("name", STORED)
def test_each_layout_is_read_as_those_who_stored_it_read_it(name):
    parts = parts_of(name)
    expected = parts.pop("expected")
    method = name.partition(".")[0]
    layer = PackedLinear(FORMATS[method].read(parts, tuple(expected.shape), {"group_size": 16}), torch.float32)
    assert torch.allclose(layer.weight, expected, rtol=1e-6, atol=0)
    assert layer.halves == (name.split(".")[1] in "234") and (layer.group is not None) == name.endswith("ordered")
    x = torch.randn(5, expected.shape[1], requires_grad=True)
    y = torch.randn(5, expected.shape[0])
    found, plain = layer(x), torch.nn.functional.linear(x, expected)
    assert torch.allclose(found, plain, atol=1e-5)
    (pulled,), (own,) = torch.autograd.grad(found, x, y), torch.autograd.grad(plain, x, y)
    assert torch.allclose(pulled, own, atol=1e-5)


def test_the_second_format_of_gptq_stores_zeros_as_they_are():
    parts = parts_of("gptq.4")
    expected = parts.pop("expected")
    parts["qzeros"] = parts["qzeros"] + 0x11111111  # as GPTQModel makes it of the first
    said = {"checkpoint_format": "gptq_v2", "group_size": 16}
    found = PackedLinear(FORMATS["gptq"].read(parts, tuple(expected.shape), said), torch.float32)
    assert torch.allclose(found.weight, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_words_are_read_from_the_lowest_bit_on(bits):
    numbers = torch.randint(1 << bits, (3, 32))
    assert torch.equal(unpack(words(numbers, bits), bits, 32).long(), numbers)
    assert torch.equal(unpack(words(numbers, bits), bits, 31).long(), numbers[:, :31])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("packed")
    save_model(place / "plain", tiny_model(**SIZES))
    return {method: save_packed(place / method, tiny_model(**SIZES), method) for method in WAYS} | {
        "hqq": place / "plain"
    }


def loaded(folders, method):
    held = "hqq" if method == "hqq" else None
    return load_model(Model(path=str(folders[method]), dtype="float32", quantization=held), "cpu")


@pytest.mark.parametrize("method", [*WAYS, "hqq"])
def test_training_beside_them_is_training_beside_the_widened_weights(method, folders):
    model = loaded(folders, method)
    assert quantised.held_in(model) == method
    held, plain = quantised.held_bytes(model)
    orders = sum(one.nbytes for name, one in model.named_buffers() if name.endswith(".group"))  # as wide as an input
    assert held - orders <= 0.3 * plain  # 4 bits and, for 32 of them, a float16 and a byte; for 64, two float16
    model = tiny_lora(model).train()
    own = learned(model)  # by peft
    layers.fuse(model, None)
    fused = [module for module in model.modules() if isinstance(module, layers._Updating)]
    assert len(fused) == 14 and all(isinstance(layers.layer_of(one).product, Packed) for one in fused)
    ours = learned(model)
    wide = tiny_lora(widened_model(loaded(folders, method), "it")).train()
    assert type(wide.get_base_model().model.layers[0].mlp.up_proj.get_base_layer()) is torch.nn.Linear
    expected = learned(wide)
    close(ours, expected)
    close(own, expected)
    first = tiny_model(**SIZES).model.layers[1].mlp.up_proj.weight
    then = wide.get_base_model().model.layers[1].mlp.up_proj.get_base_layer().weight
    assert 0.02 < (then - first).norm() / first.norm() < 0.2


@pytest.mark.parametrize("columns", [1, 5, 8])
def test_numbers_of_rows_of_any_length_are_held_in_half_bytes(columns):
    numbers, scale = torch.randint(16, (3, columns), dtype=torch.uint8), torch.rand(3, 1)
    layer = PackedLinear(Numbers(numbers, scale, torch.full((1, 1), 8, dtype=torch.uint8)), torch.float32)
    assert layer.codes.nbytes == 3 * ((columns + 1) // 2)
    assert torch.equal(layer.weight, (numbers.float() - 8) * scale)
    for more in (200, 0):  # numbers, and zeros, that need 8 bits
        zero = torch.full((3, 1), 207, dtype=torch.uint8)
        eight = PackedLinear(Numbers(numbers + more, scale, zero), torch.float32)
        assert torch.equal(eight.weight, (numbers.float() + more - 207) * scale) and not eight.halves


def test_hqq_chooses_what_its_authors_package_chooses():
    groups, zero, scale = (GOLDEN[f"hqq.4.{name}"] for name in ("groups", "zero", "scale"))
    inverse, found = _half_quadratic.solved(groups, 4)
    assert torch.allclose(inverse, scale) and torch.allclose(found, zero, atol=1e-5)


def test_hqq_leaves_less_of_an_error_than_rounding():
    weight = torch.randn(64, 128).sign() * torch.rand(64, 128).pow(4)
    held = PackedLinear(_half_quadratic.rounded(weight, 4, 32), torch.float32)
    low, high = weight.view(-1, 32).amin(1, keepdim=True), weight.view(-1, 32).amax(1, keepdim=True)
    step = (high - low) / 15
    plain = ((weight.view(-1, 32) - low) / step).round() * step + low
    assert (held.weight - weight).abs().mean() < 0.98 * (plain.view_as(weight) - weight).abs().mean()


def test_a_weight_is_made_anew_and_cannot_be_set(folders):
    layer = loaded(folders, "awq").model.layers[0].mlp.up_proj
    assert layer.weight is not layer.weight and layer.weight.shape == (128, 64)
    with pytest.raises(KeyError):
        layer.weight = torch.nn.Parameter(torch.zeros(128, 64))
