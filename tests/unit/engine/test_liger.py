"""Liger's kernels are asked for with what they mean, and their absence is one sentence. They run on CUDA only."""

import sys
import types

import pytest
import torch

from tunesmith.engine import liger
from tunesmith.errors import MissingExtra


@pytest.fixture
def functional(monkeypatch):
    """liger_kernel.transformers.functional in plain torch, with the arguments of liger-kernel 0.6 to 0.8."""
    asked = []

    def liger_rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):  # noqa: N803 (Liger's names)
        asked.append((casting_mode, in_place))
        return X * torch.rsqrt(X.pow(2).mean(-1, keepdim=True) + eps) * (offset + W)

    made = types.ModuleType("liger_kernel.transformers.functional")
    made.liger_rms_norm = liger_rms_norm
    made.liger_swiglu = lambda a, b: torch.nn.functional.silu(a) * b
    made.liger_geglu = lambda a, b: torch.nn.functional.gelu(a, approximate="tanh") * b
    made.liger_rope = lambda q, k, cos, sin, position_ids=None, unsqueeze_dim=1: (q * cos, k * sin)
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return asked


def test_norms_are_those_of_transformers(functional):
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    for kind, offset, mode in ((LlamaRMSNorm, 0.0, "llama"), (Gemma2RMSNorm, 1.0, "gemma")):
        module = kind(16, eps=1e-3)
        module.weight.data = torch.rand(16, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(liger.rms_norm(x, module.weight, 1e-3, offset), module(x))
        assert functional.pop() == (mode, False)


def test_gates_are_given_the_gate_first(functional):
    gate, up = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(liger.swiglu(gate, up), torch.nn.functional.silu(gate) * up)
    assert torch.equal(liger.geglu(gate, up), torch.nn.functional.gelu(gate, approximate="tanh") * up)
    query, key, cos, sin = torch.randn(4, 1, 2, 5, 8)
    assert torch.equal(liger.rotary(query, key, cos, sin)[1], key * sin)


def test_what_is_missing_is_one_sentence(monkeypatch):
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'liger-kernel is not installed: pip install "tunesmith\[liger\]"$'):
        liger.require("cuda")
    monkeypatch.setattr(liger, "find_spec", lambda name: name)
    assert liger.available("cpu") == "Liger's kernels are for cuda, and this is cpu"
    assert liger.available("cuda") is None
    liger.require("cuda")
