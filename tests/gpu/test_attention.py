"""Every kernel of packed attention on a device, values and gradients, against an explicit mask in float64."""

from dataclasses import replace

import pytest
import torch

from gpu import needs
from numerics import varlen
from numerics.packed import packed_batch
from tunesmith.engine import compat, cuda_attention
from tunesmith.engine.attention import Layout

pytestmark = needs.cuda

LENGTHS = (300, 7, 129, 1, 128)
SHARED = ((0, 0), (0, 200), (1, 203), (0, 0), (3, 1))
TOLERANCE = {torch.bfloat16: 1.5e-2, torch.float32: 1e-4}  # of the norm; a key too many or too few among 100 is 0.1

KERNELS = [
    pytest.param("flash3", marks=[needs.package("flash_attn_interface"), needs.generation(9, exactly=True)]),
    pytest.param("varlen", marks=needs.generation(8)),
    pytest.param("flash2", marks=[needs.package("flash_attn"), needs.generation(8)]),
    "flex",
]


@pytest.fixture(autouse=True)
def fresh():
    """Each test compiles for itself: torch gives up on a function after some compilations, and a run has few."""
    torch.compiler.reset()
    cuda_attention._compiled.cache_clear()


def compare(name, heads, size, window, softcap, shared, dtype):
    batch = packed_batch(LENGTHS, 5)
    batch = replace(batch, offsets=batch.offsets.to(needs.DEVICE))
    packed = Layout.of(replace(batch, prefix=torch.tensor(SHARED)) if shared else batch)
    generator = torch.Generator().manual_seed(1)
    given, exact = [], []
    for number in (heads[0], heads[1], heads[1], heads[0]):  # query, key, value, gradient of the result
        made = torch.randn(1, number, sum(LENGTHS), size, generator=generator).to(dtype)
        given.append(made.to(needs.DEVICE).requires_grad_())
        exact.append(made.double().requires_grad_())
    found = cuda_attention.attend(name, *given[:3], 0.1, window, softcap, packed)
    expected = varlen.explicit(*exact[:3], packed, 0.1, window, softcap)
    ours = torch.autograd.grad(found, given[:3], given[3].detach().transpose(1, 2))
    theirs = torch.autograd.grad(expected, exact[:3], exact[3].detach().transpose(1, 2))
    for one, other in zip((found, *ours), (expected, *theirs), strict=True):
        assert one.dtype == dtype
        assert (one.double().cpu() - other).norm() < TOLERANCE[dtype] * other.norm()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("heads", "size"), [((4, 4), 64), ((8, 2), 128)])
@pytest.mark.parametrize("name", KERNELS)
def test_equal_to_an_explicit_mask(name, heads, size, window, softcap, shared):
    if name == "varlen" and (softcap or (window and not compat.varlen_has_windows())):
        pytest.skip("choose gives this to another kernel")
    compare(name, heads, size, window, softcap, shared, torch.bfloat16)


@pytest.mark.parametrize("shared", [False, True])
def test_float32_by_flex(shared):
    compare("flex", (4, 2), 64, 100, None, shared, torch.float32)


def test_flex_is_not_compiled_for_every_row():
    tokens = (300, 411, 520, 633, 749)  # after two lengths the third, and every other, is served by one compilation
    for number, total in enumerate(tokens):
        batch = packed_batch((total - 40, 33, 7), 5)
        packed = Layout.of(replace(batch, offsets=batch.offsets.to(needs.DEVICE)))
        states = [
            torch.randn(1, heads, total, 64, device=needs.DEVICE, dtype=torch.bfloat16, requires_grad=True)
            for heads in (4, 2, 2)
        ]
        with torch.compiler.set_stance("fail_on_recompile" if number > 2 else "default"):
            cuda_attention.attend("flex", *states, None, None, None, packed).sum().backward()


def test_a_kernel_is_chosen_and_runs():
    for dtype in (torch.bfloat16, torch.float32):
        for window in (None, 100):
            for softcap in (None, 5.0):
                name = cuda_attention.choose(dtype, 64, 64, softcap is not None, window is not None)
                compare(name, (4, 2), 64, window, softcap, False, dtype)
