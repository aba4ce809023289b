"""Frozen weights in int8: the products are near the exact ones, and training with them is near training without."""

import copy

import pytest
import torch

from fixtures_models import tiny_lora, tiny_model
from numerics.packed import gradients, packed_batch
from tunesmith.defaults import Device, resolve
from tunesmith.engine import frozen, kernels
from tunesmith.engine.elementwise import PLAIN
from tunesmith.engine.frozen import FrozenLinear, Int8
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe

RANDOM = torch.Generator().manual_seed(2)


def normal(*shape):
    return torch.randn(shape, generator=RANDOM)


def test_a_product_is_that_of_the_rounded_numbers():
    weight, bias, x = normal(40, 24), normal(40), normal(7, 24)
    held = Int8.of(weight, bias, PLAIN)
    rows, scale = PLAIN.quantise(x, None)
    by_hand = (rows.double() * scale.double()) @ held.dequantised().double().T + bias.double()
    torch.testing.assert_close(held.forward(held.prepare(x)).double(), by_hand, rtol=1e-5, atol=1e-5)
    assert (held.dequantised() - weight).abs().max() <= weight.abs().amax(1).max() / 254 * 1.001
    assert (by_hand - (x @ weight.T + bias)).abs().mean() < 0.01 * by_hand.abs().mean()


@pytest.mark.parametrize("into", [True, False])
def test_a_gradient_goes_back_through_the_same_numbers(into, monkeypatch):
    monkeypatch.setattr(frozen, "PART_SUMS", 64)  # several parts
    weight, gradient = normal(40, 24) * torch.logspace(-3, 3, 40)[:, None], normal(130, 40)
    held = Int8.of(weight, None, PLAIN)
    before = normal(130, 24)
    found = held.pull(gradient, before.clone() if into else None) - (before if into else 0)
    exact = gradient.double() @ held.dequantised().double()
    assert (found - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("ops", [PLAIN])
def test_a_model_held_in_int8_learns_nearly_the_same(ops):
    exact = tiny_lora(tiny_model(tied=False))
    held = copy.deepcopy(exact)
    said = frozen.hold(held, "int8", ops)
    assert said == f"frozen weights: {2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64):,} held in int8"
    assert type(held.get_base_model().lm_head) is torch.nn.Linear, "the head is left as it is"
    batch = packed_batch((9, 5, 12), 300)
    for model in (exact, held):
        chosen = kernels.choose(model)
        assert chosen.scorer.packed and not chosen.notes, chosen.notes
        (chosen.scorer(model, batch).logps * batch.weight).sum().backward()
    theirs, ours = gradients(exact), gradients(held)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() < 0.15 * gradient.norm(), name
    assert any(isinstance(module, FrozenLinear) for module in held.modules())


def test_nothing_frozen_is_refused():
    with pytest.raises(RecipeError, match="model.frozen_dtype: int8 is for frozen weights"):
        frozen.hold(tiny_model(), "int8", PLAIN)


@pytest.mark.parametrize("adapter", ["full", "freeze"])
def test_weights_that_are_saved_are_not_rounded(adapter):
    said = Recipe(
        model={"path": "builtin:tiny", "frozen_dtype": "int8"}, data={"train": "builtin:identity"}, adapter=adapter
    )
    with pytest.raises(RecipeError, match="model.frozen_dtype: int8 is for a model that stays as it is"):
        resolve(said, Device("cpu", "a CPU", True))


def test_a_head_with_an_update_is_left_as_it_is():
    model = tiny_lora(tiny_model(tied=False), target_modules=["q_proj", "lm_head"])
    frozen.hold(model, "int8", PLAIN)
    assert type(model.get_base_model().lm_head.base_layer) is torch.nn.Linear
