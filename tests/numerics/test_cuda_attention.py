"""Every way of asking a CUDA kernel for packed attention, against an explicit mask in float64.

FlexAttention runs here as it is. The other kernels need a device: plain torch stands in for them, with their arguments.
"""

import sys
import types
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from fixtures_models import tiny_config
from numerics import varlen
from numerics.packed import packed_batch
from tunesmith.engine import compat, cuda_attention
from tunesmith.engine.attention import Layout

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")

LENGTHS = (9, 7, 12, 1, 3)
SHARED = ((0, 0), (0, 5), (1, 8), (0, 0), (3, 1))  # the third goes on from two others
HEADS = [(4, 4), (6, 2)]
WINDOWS = [None, 1, 4, 1000]
CAPS = [None, 0.7]


def layout(lengths=LENGTHS, shared=False):
    batch = packed_batch(lengths, 5)
    return Layout.of(replace(batch, prefix=torch.tensor(SHARED)) if shared else batch)


def states(heads, differentiable):
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, number, sum(LENGTHS), 8) for number in (heads[0], heads[1], heads[1])]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [one.requires_grad_(differentiable) for one in made]


def compare(name, heads, window, softcap, packed, scaling=0.3):
    """Values, and gradients but of FlexAttention, which has none on a CPU."""
    query, key, value = states(heads, differentiable=name != "flex")
    found = cuda_attention.attend(name, query, key, value, scaling, window, softcap, packed)
    expected = varlen.explicit(query, key, value, packed, 8**-0.5 if scaling is None else scaling, window, softcap)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    if name == "flex":
        return
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(out, (query, key, value), pull) for out in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.fixture(params=["2.10", "2.11", "2.13"])
def torch_version(request, monkeypatch):
    """torch's variable-length attention of some version, in plain torch."""
    import torch.nn.attention.varlen as module

    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(f"{request.param}.0+cu130"))
    monkeypatch.setattr(module, "varlen_attn", getattr(varlen, f"torch_{request.param.replace('.', '_')}"))
    return request.param


@pytest.fixture(params=["flash2", "flash3", "flash3, beta"])
def flash(request, monkeypatch):
    """FlashAttention of some version, in plain torch: the name of its kernel."""
    second, third = types.ModuleType("flash_attn"), types.ModuleType("flash_attn_interface")
    second.flash_attn_varlen_func = varlen.flash_2
    third.flash_attn_varlen_func = varlen.flash_3_beta if "beta" in request.param else varlen.flash_3
    monkeypatch.setitem(sys.modules, "flash_attn", second)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", third)
    cuda_attention._flash.cache_clear()
    yield request.param.partition(",")[0]
    cuda_attention._flash.cache_clear()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
def test_flex_equals_an_explicit_mask(heads, window, softcap, shared):
    compare("flex", heads, window, softcap, layout(shared=shared))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
def test_torchs_kernel_is_asked_for_the_right_thing(torch_version, heads, window, shared):
    if window is not None and not compat.varlen_has_windows():
        pytest.skip("choose gives windows to another kernel with torch 2.10")
    compare("varlen", heads, window, None, layout(shared=shared))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
def test_flash_attention_is_asked_for_the_right_thing(flash, heads, window, softcap, shared):
    compare(flash, heads, window, softcap, layout(shared=shared))


def test_no_scaling_is_that_of_the_head_size(torch_version):
    compare("varlen", (4, 2), None, None, layout(), scaling=None)
    compare("flex", (4, 2), None, None, layout(), scaling=None)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("window", [None, 400])
def test_blocks_are_those_of_the_mask(window, shared):
    packed = layout((600, 40, 200, 129, 31), shared=shared)
    tokens = sum(packed.lengths)
    found = cuda_attention.block_mask(packed, window)
    mask = varlen.explicit_mask(packed, window)
    seen = cuda_attention.sees(packed, window)
    place = torch.arange(tokens)
    assert torch.equal(seen(None, None, place[:, None], place), mask)

    expected = create_block_mask(seen, None, None, tokens, tokens, device="cpu")
    assert found.shape == expected.shape and found.BLOCK_SIZE == expected.BLOCK_SIZE
    assert torch.equal(found.to_dense(), expected.to_dense())
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name
    assert found.full_kv_num_blocks.sum() > 0
    assert found.to_dense().float().mean() < 0.6


def test_sequences_that_are_said_to_see_themselves_alone_share_nothing():
    alone = layout()
    bounds = alone.offsets.tolist()
    said = replace(alone, seen=tuple((slice(*pair),) for pair in pairwise(bounds)))
    assert cuda_attention._rows(said).seen is None
    for name in ("kv_num_blocks", "kv_indices"):
        ours, theirs = (getattr(cuda_attention.block_mask(one, 4), name) for one in (said, alone))
        assert torch.equal(ours, theirs)
    compare("flex", (4, 2), 4, None, said)


def test_what_depends_on_the_layout_is_made_once_a_batch():
    packed, other = layout(shared=True), layout(shared=True)
    wanted = [(packed, 4), (packed, None), (other, 4)]
    masks = [cuda_attention.block_mask(*one) for one in wanted]
    assert [id(cuda_attention.block_mask(*one)) for one in wanted] == [id(mask) for mask in masks]
    assert len({id(mask) for mask in masks}) == 3
    assert cuda_attention._rows(packed) is cuda_attention._rows(packed)
    assert cuda_attention._cap(0.7) is cuda_attention._cap(0.7)


@pytest.fixture
def device(monkeypatch):
    """Sets what is installed on which generation of devices; what was chosen before is forgotten."""
    import transformers.utils.import_utils as packages

    def put(installed, generation, version):
        monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(f"{version}.0"))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: generation)
        for number in (2, 3):
            monkeypatch.setattr(packages, f"is_flash_attn_{number}_available", lambda n=number: n in installed)

    cuda_attention.choose.cache_clear()
    yield put
    cuda_attention.choose.cache_clear()


@pytest.mark.parametrize(
    ("installed", "generation", "version", "wanted", "name"),
    [
        ((), (9, 0), "2.13", {}, "varlen"),
        ((), (9, 0), "2.13", {"window": True}, "varlen"),
        ((), (9, 0), "2.10", {}, "varlen"),
        ((), (9, 0), "2.10", {"window": True}, "flex"),
        ((2,), (9, 0), "2.10", {"window": True}, "flash2"),
        ((2,), (9, 0), "2.13", {}, "varlen"),
        ((2, 3), (9, 0), "2.13", {}, "flash3"),
        ((2, 3), (9, 0), "2.13", {"softcap": True, "window": True}, "flash3"),
        ((2, 3), (10, 0), "2.13", {}, "varlen"),  # FlashAttention 3 is for Hopper
        ((2, 3), (8, 0), "2.13", {"softcap": True}, "flash2"),
        ((), (8, 0), "2.13", {"softcap": True}, "flex"),
        ((2, 3), (7, 5), "2.13", {}, "flex"),
        ((2, 3), (9, 0), "2.13", {"dtype": torch.float32}, "flex"),
        ((2, 3), (9, 0), "2.13", {"value_size": 64}, "flex"),
        ((2, 3), (9, 0), "2.13", {"head_size": 320, "value_size": 320}, "flex"),
        ((2, 3), (9, 0), "2.13", {"head_size": 84, "value_size": 84}, "flex"),
        ((), (9, 0), "2.13", {"head_size": 256, "value_size": 256, "dtype": torch.float16}, "varlen"),
    ],
)
def test_the_fastest_kernel_that_does_it_is_chosen(device, installed, generation, version, wanted, name):
    device(installed, generation, version)
    layer = {"dtype": torch.bfloat16, "head_size": 128, "value_size": 128, "softcap": False, "window": False} | wanted
    assert cuda_attention.choose(**layer) == name
    assert cuda_attention.said(name) == f"attention: {cuda_attention.KERNELS[name]}"


@pytest.mark.parametrize(
    ("arch", "changes", "version", "names"),
    [
        ("llama", {}, "2.10", ("varlen",)),
        ("mistral", {"sliding_window": 4}, "2.13", ("varlen",)),
        ("mistral", {"sliding_window": 4}, "2.10", ("varlen", "flex")),
        ("gemma2", {}, "2.13", ("flex",)),
        ("qwen2", {"head_dim": None, "sliding_window": 4, "use_sliding_window": False}, "2.10", ("varlen",)),
    ],
)
def test_the_kernels_of_a_model_are_said_in_one_line(device, arch, changes, version, names):
    device((), (9, 0), version)
    found = cuda_attention.of_model(tiny_config(arch=arch, **changes), torch.bfloat16)
    assert found == names
    said = {("varlen",): "torch's variable-length attention"}.get(names)
    assert said is None or cuda_attention.said(*found) == f"attention: {said}"
