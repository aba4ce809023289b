"""Frozen weights in 8 bits: the arithmetic against float64, and the layout that the CUDA kernel wants.

The bounds: rounding to 3 bits of mantissa moves a number by at most 2^-4 of itself, or by half of the smallest
subnormal (2^-10) of a row whose largest number is 448.
"""

import pytest
import torch

from tunesmith.engine import float8
from tunesmith.engine.float8 import Float8

HALF_STEP = 2**-4
SMALLEST = 2**-10 / 448


def random(*shape, seed=0, spread=1.0):
    """Normal numbers, in rows whose sizes differ by factors of e^spread."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.exp(spread * torch.randn(shape[0], 1, generator=generator))


@pytest.fixture
def weight():
    return random(48, 32, seed=1)


def bound(x):
    """How far casting the rows of x may move each of its numbers."""
    x = x.double()
    return HALF_STEP * x.abs() + SMALLEST * x.abs().amax(-1, keepdim=True)


def test_a_cast_moves_no_number_further_than_its_rounding():
    x = random(64, 128, spread=8.0)
    x[3] = 0
    eight, scale = float8.cast(x)
    assert eight.dtype == torch.float8_e4m3fn and scale.shape == (64, 1) and scale.dtype == torch.float32
    moved = (eight.double() * scale.double() - x.double()).abs()
    assert torch.isfinite(moved).all() and (moved <= bound(x) * 1.0001).all()
    assert (moved / x.double().abs().clamp_min(1e-30))[:3].max() > HALF_STEP / 2  # it is 8 bits
    assert (eight[4:].float().abs().amax(-1) == 448).all()  # all of the range is used


def test_a_weight_in_the_cast_is_multiplied_before():
    x, factor = random(8, 32), torch.rand(32) + 0.5
    for ours, theirs in zip(float8.cast(x, factor), float8.cast(x * factor), strict=True):
        assert torch.equal(ours.float(), theirs.float())


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_forward_is_the_product_within_the_rounding_of_both(weight, spread):
    x, held = random(20, 32, spread=spread), Float8.of(weight)
    found = held.forward(held.prepare(x))
    assert found.dtype == x.dtype and found.shape == (20, 48)
    x, w = x.double(), weight.double()
    most = (x.abs() + bound(x)) @ (w.abs() + bound(w)).T - x.abs() @ w.abs().T
    assert ((found.double() - x @ w.T).abs() <= most).all()
    assert (found.double() - x @ w.T).norm() < 0.06 * (x @ w.T).norm()
    # the weight that was computed with, exactly: only x is rounded
    eight, scale = float8.cast(x.float())
    exact = eight.double() * scale.double() @ held.dequantised().double().T
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_pull_is_the_gradient_of_the_weight_that_was_computed_with(weight, spread):
    gradient, held = random(20, 48, seed=5, spread=spread), Float8.of(weight)
    found = held.pull(gradient)
    assert found.dtype == gradient.dtype and found.shape == (20, 32)
    scaled = gradient.double() * held.scale.double()
    most = bound(scaled) @ held.weight.double().abs()
    exact = gradient.double() @ held.dequantised().double()
    assert ((found.double() - exact).abs() <= most * 1.001 + 1e-9).all()
    assert (found.double() - exact).norm() < 0.04 * exact.norm()
    assert (found.double() - gradient.double() @ weight.double()).norm() < 0.06 * exact.norm()


def test_a_bias_is_added_and_not_pulled(weight):
    x, bias, plain = random(20, 32), random(48, 1)[:, 0], Float8.of(weight)
    held = Float8.of(weight, bias)
    torch.testing.assert_close(held.forward(held.prepare(x)), plain.forward(plain.prepare(x)) + bias)
    assert torch.equal(held.pull(random(20, 48)), plain.pull(random(20, 48)))


def test_pull_adds_into_what_is_there(weight):
    gradient, held = random(20, 48), Float8.of(weight)
    there = random(20, 32, seed=7)
    expected = there + held.pull(gradient)
    assert held.pull(gradient, there) is there
    torch.testing.assert_close(there, expected)


def test_outputs_of_very_different_sizes_keep_their_own_scale(weight):
    weight[7] *= 1e4
    held = Float8.of(weight)
    moved = (held.dequantised().double() - weight.double()).abs()
    assert (moved <= bound(weight) * 1.0001).all()
    assert held.scale[7] > 1e3 * held.scale.median()


def test_the_two_copies_are_the_same_numbers(weight):
    held = Float8.of(weight)
    assert torch.equal(held.weight.float().T, held.turned.float())
    stored = sum(getattr(held, name).nbytes for name in ("weight", "turned", "scale", "ones"))
    assert stored == 2 * 48 * 32 + 4 * (48 + 32)


def test_the_products_are_asked_as_the_cuda_kernel_wants_them(monkeypatch, weight):
    """What torch checks for CUDA: row by row and column by column, 16 numbers at once, contiguous float32 scales."""
    asked, scaled_mm = [], float8.scaled_mm

    def checked(left, right, left_scale, left_kind, right_scale, right_kind, output_dtype, use_fast_accum):
        (tokens, inner), outputs = left.shape, right.shape[1]
        assert left.dtype == right.dtype == torch.float8_e4m3fn
        assert left.stride() == (inner, 1) and right.stride() == (1, inner)
        assert inner % 16 == outputs % 16 == 0
        assert left_scale.shape == (tokens, 1) and right_scale.shape == (1, outputs)
        assert left_scale.dtype == right_scale.dtype == torch.float32
        assert left_scale.is_contiguous() and right_scale.is_contiguous()
        assert left_kind == right_kind == torch.nn.functional.ScalingType.RowWise
        asked.append((tokens, inner, outputs, use_fast_accum))
        return scaled_mm(left, right, left_scale, left_kind, right_scale, right_kind, output_dtype=output_dtype)

    monkeypatch.setattr(float8, "scaled_mm", checked)
    held = Float8.of(weight)
    held.forward(held.prepare(random(20, 32)))
    held.pull(random(20, 48))
    held.forward(held.prepare(random(32, 20).T))  # not contiguous
    assert asked == [(20, 32, 48, True), (20, 48, 32, False), (20, 32, 48, True)]


def test_a_weight_that_cannot_be_held_is_named():
    assert float8.problem(torch.empty(48, 32)) is None
    assert float8.problem(torch.empty(48, 40)) == "a weight of 48 x 40 is not divisible by 16"
    with pytest.raises(AssertionError, match="48 x 40"):
        Float8.of(torch.empty(48, 40))
