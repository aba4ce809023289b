"""Liger's kernels on a device, values and gradients, against plain torch in float64."""

import pytest
import torch

from gpu import needs
from tunesmith.engine import liger

pytestmark = [needs.cuda, needs.package("liger_kernel")]


def norm(x, weight, offset):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * (offset + weight)


def turned(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def compare(ours, theirs, *shapes):
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    given = [one.detach().float().to(needs.DEVICE).requires_grad_() for one in exact]
    expected = theirs(*exact)
    pull = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    by_hand = torch.autograd.grad(expected, exact, pull)
    found = ours(*given)
    gradients = torch.autograd.grad(found, given, pull.float().to(needs.DEVICE))
    for one, other in zip((found, *gradients), (expected, *by_hand), strict=True):
        torch.testing.assert_close(one.double().cpu(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms(offset):
    ours = lambda x, weight: liger.rms_norm(x, weight, 1e-5, offset)  # noqa: E731
    compare(ours, lambda x, weight: norm(x, weight, offset), (1, 37, 96), (96,))


def test_gates():
    # A copy, as the backward pass writes over gate and up
    compare(lambda g, u: liger.swiglu(g + 0, u + 0), lambda g, u: torch.nn.functional.silu(g) * u, *[(1, 37, 96)] * 2)
    gelu = lambda g, u: torch.nn.functional.gelu(g, approximate="tanh") * u  # noqa: E731
    compare(lambda g, u: liger.geglu(g + 0, u + 0), gelu, *[(1, 37, 96)] * 2)


def test_rotary():
    angle = torch.arange(37)[:, None] * 100.0 ** (-torch.arange(32) / 32)
    angle = torch.cat([angle, angle], -1)[None].double()  # [1, T, D]
    cos, sin = angle.cos(), angle.sin()

    def ours(query, key):
        on_device = (one.float().to(needs.DEVICE) for one in (cos, sin))
        return torch.cat(liger.rotary(query + 0, key + 0, *on_device), dim=1)

    def theirs(query, key):
        return torch.cat([turned(one, cos[:, None], sin[:, None]) for one in (query, key)], dim=1)

    compare(ours, theirs, (1, 4, 37, 64), (1, 2, 37, 64))
