"""AdamW in 8 bit: the rule of AdamW within what a byte can say, a plain state, and one sentence where it is missing."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.component import find
from tunesmith.engine import checkpoint
from tunesmith.errors import MissingExtra
from tunesmith.seams import Optimizer

OPTIONS = {"learning_rate": 1e-2, "weight_decay": 0.1}
STEPS = 30


@pytest.fixture
def component():
    pytest.importorskip("bitsandbytes")
    return find(Optimizer, "adamw8bit")(**OPTIONS)


def model(dtype=torch.float32):
    """A large matrix, a small one, and a vector."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.Linear(64, 8, bias=False)).to(dtype)


def trained(net, optimizer, steps, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in net.parameters():
            scale = 10 ** torch.rand(parameter.shape, generator=generator).mul(3).sub(3)  # 0.001 to 1
            gradient = scale * (torch.randn(parameter.shape, generator=generator) + 0.5)
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
    return [parameter.detach().clone() for parameter in net.parameters()]


def test_it_is_adamw_within_what_a_byte_can_say(component):
    """Every step moves a weight by about the learning rate; a byte's rounding may turn a few percent of that."""
    start = [parameter.detach().clone() for parameter in model().parameters()]
    ours, exact = model(), model(torch.float64)
    groups = [
        {"params": [p for p in exact.parameters() if p.ndim >= 2], "weight_decay": OPTIONS["weight_decay"]},
        {"params": [p for p in exact.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    expected = trained(exact, torch.optim.AdamW(groups, lr=OPTIONS["learning_rate"]), STEPS)
    found = trained(ours, component.build(ours), STEPS)
    for before, one, other in zip(start, found, expected, strict=True):
        moved = (other - before).abs().mean()
        error = (one - other).abs().mean()
        assert error < (0.05 if one.numel() >= 4096 else 1e-5) * moved
    assert (found[0] - expected[0]).abs().mean() > 1e-6, "in 8 bit"


def test_its_state_is_small_and_plain_and_goes_on_bit_for_bit(component, tmp_path):
    whole = model()
    expected = trained(whole, component.build(whole), 6)

    first = model()
    optimizer = component.build(first)
    trained(first, optimizer, 3)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    checkpoint.save_state(tmp_path, optimizer.state_dict(), scheduler, None, {}, [])
    held = load_file(tmp_path / checkpoint.OPTIMIZER)
    large = [tensor for name, tensor in held.items() if name.startswith("0.")]
    assert sum(tensor.nbytes for tensor in large) < 2.1 * 128 * 64
    assert {tensor.dtype for tensor in held.values()} == {torch.uint8, torch.float32}

    second = model()
    second.load_state_dict(first.state_dict())
    again = component.build(second)
    checkpoint.load_optimizer(tmp_path, again, torch.optim.lr_scheduler.ConstantLR(again, factor=1.0))
    for one, other in zip(trained(second, again, 3, start=3), expected, strict=True):
        assert torch.equal(one, other)


def test_missing_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "tunesmith.optimizers._bitsandbytes", raising=False)
    said = r"^optimizer=adamw8bit needs bitsandbytes, which is not installed: pip install 'tunesmith\[bitsandbytes\]'$"
    with pytest.raises(MissingExtra, match=said):
        find(Optimizer, "adamw8bit")(**OPTIONS).build(model())
