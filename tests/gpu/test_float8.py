"""The 8-bit products of a device, against float64 and against the same arithmetic on a CPU."""

import pytest
import torch

from gpu import needs
from tunesmith.engine import float8
from tunesmith.engine.float8 import Float8

pytestmark = [needs.cuda, needs.generation(8, 9)]


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).bfloat16()


@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(37, 64, 32), (1, 1024, 512), (4000, 4096, 2048)])
def test_products_are_those_of_the_quantised_weight(tokens, outputs, inputs):
    x, gradient = random(tokens, inputs), random(tokens, outputs, seed=1)
    weight, bias = random(outputs, inputs, seed=2), random(outputs, seed=3)
    held = Float8.of(weight.to(needs.DEVICE), bias.to(needs.DEVICE))
    weight = held.dequantised().double().cpu()
    found = held.forward(held.prepare(x.to(needs.DEVICE))).double().cpu() - bias.double()
    pulled = held.pull(gradient.to(needs.DEVICE)).double().cpu()
    for ours, exact in ((found, x.double() @ weight.T), (pulled, gradient.double() @ weight)):
        assert (ours - exact).norm() < 0.04 * exact.norm()  # one operand is rounded to 3 bits: 2^-4 at most


def test_the_fused_cast_is_the_plain_one():
    for tokens in (5, 64, 333):
        x, factor = random(tokens, 512), random(512, seed=1).float().abs()
        for weight in (None, factor):
            plain = float8.cast(x, weight)
            fused = float8._cast(x.to(needs.DEVICE), None if weight is None else weight.to(needs.DEVICE))
            torch.testing.assert_close(fused[1].cpu(), plain[1], rtol=1e-6, atol=0)
            same = fused[0].cpu().float() == plain[0].float()
            assert same.float().mean() > 0.999  # a quotient that lies between two numbers may be rounded either way


def test_pull_adds_into_what_is_there():
    held = Float8.of(random(64, 32).to(needs.DEVICE))
    gradient, there = random(20, 64).to(needs.DEVICE), random(20, 32, seed=1).to(needs.DEVICE)
    expected = there.float() + held.pull(gradient).float()
    assert held.pull(gradient, there) is there
    torch.testing.assert_close(there.float(), expected, rtol=1e-2, atol=1e-2)
