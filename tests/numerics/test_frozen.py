"""Frozen weights in int8: the products are near the exact ones, and training with them is near training without."""

import copy
from functools import partial

import pytest
import torch

from fixtures_models import tiny_lora, tiny_model
from numerics.packed import gradients, packed_batch
from tunesmith.adapted import adapt
from tunesmith.adapters.hira import HiRA
from tunesmith.defaults import Device, resolve
from tunesmith.engine import frozen, initial, kernels
from tunesmith.engine.elementwise import PLAIN
from tunesmith.engine.frozen import HeldLinear, Int8
from tunesmith.errors import ModelError, RecipeError
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
    assert any(isinstance(module, HeldLinear) for module in held.modules())


def hira(model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        adapted = HiRA(r=4).apply(model)
        for name, one in adapted.named_parameters():
            if "hira_B" in name:
                torch.nn.init.normal_(one, 0.0, 0.2)
    return adapted


@pytest.mark.parametrize("beside", [partial(tiny_lora, use_dora=True), hira])
def test_adapters_that_read_the_weight_itself_read_it_with_its_scale(beside):
    exact = beside(tiny_model(tied=False))
    held = copy.deepcopy(exact)
    frozen.hold(held, "int8", PLAIN)
    batch = packed_batch((9, 5, 12), 300)
    found = []
    for model in (exact, held):
        scorer = kernels.choose(model).scorer
        found.append(scorer(model, batch).logps)
        (found[-1] * batch.weight).sum().backward()
    assert (found[1] - found[0]).abs().max() < 0.2
    theirs, ours = gradients(exact), gradients(held)
    assert theirs.keys() == ours.keys() and len(theirs) > 20
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() < 0.15 * gradient.norm(), name


def adapted(adapter):
    recipe = Recipe(
        model={"path": "builtin:tiny", "frozen_dtype": "int8"}, data={"train": "builtin:identity"}, adapter=adapter
    )
    return adapt(resolve(recipe, Device("cpu", "a CPU", False)).recipe, "cpu", None)


@pytest.mark.parametrize("adapter", ["p_tuning", {"type": "lora", "init_lora_weights": "pissa"}])
def test_what_is_rounded_is_no_part_of_the_trial(adapter):
    found = adapted(adapter)
    assert found.notes == ("frozen weights: 2,752,512 held in int8",)
    assert found.kernels.scorer.packed and found.kernels.scorer.fused
    assert sum(one.codes.numel() for one in found.model.modules() if isinstance(one, HeldLinear)) == 2_752_512


def test_where_an_update_began_is_not_rounded():
    model = adapted({"type": "lora", "init_lora_weights": "pissa"}).model
    began = {key: one.clone() for key, one in initial._state(model, initial.NAME).items()}
    assert began and all(one.dtype == torch.float32 for one in began.values())
    update = {
        key: torch.cat([one, -one if "lora_B" in key else one], int("lora_B" in key)) for key, one in began.items()
    }
    found = initial.take_up(model, "default", update)
    assert all(torch.equal(one, began[key]) for key, one in found.items())
    other = {key: one + 1 for key, one in update.items()}
    with pytest.raises(ModelError, match="began with another decomposition of .*q_proj"):
        initial.take_up(model, "default", other)


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
