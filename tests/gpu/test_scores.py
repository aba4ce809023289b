"""Log-probabilities on a device equal log_softmax of the whole model in float64 on a CPU, values and gradients."""

import copy
from dataclasses import fields, replace

import pytest
import torch

from fixtures_models import tiny_lora, tiny_model
from gpu import needs
from numerics.packed import alone, gradients, packed_batch
from tunesmith.engine import kernels

pytestmark = needs.cuda

LENGTHS = (7, 1, 12, 40)


def on_device(batch):
    moved = {one.name: getattr(batch, one.name) for one in fields(batch)}
    return replace(batch, **{n: v.to(needs.DEVICE) for n, v in moved.items() if isinstance(v, torch.Tensor)})


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "mistral", "gemma2"])
def test_equal_to_log_softmax(arch, adapted):
    model = tiny_model(arch=arch)
    model = tiny_lora(model) if adapted else model
    batch = packed_batch(LENGTHS, 300)
    exact = copy.deepcopy(model).double()
    (exact.get_base_model() if adapted else exact).set_attn_implementation("eager")
    expected = alone(exact, batch)
    (expected * batch.weight).sum().backward()

    model = model.to(needs.DEVICE)
    scorer = kernels.choose(model).scorer
    batch = on_device(batch)
    found = scorer(model, batch).logps
    (found * batch.weight).sum().backward()
    assert found.is_cuda == (needs.DEVICE == "cuda")
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-4, atol=1e-4)
    theirs, ours = gradients(exact), gradients(model)
    assert theirs.keys() == ours.keys() and ours
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name].double().cpu(), gradient, rtol=1e-2, atol=1e-3, msg=name)


def test_bfloat16_is_close_and_packed():
    model = tiny_model()
    batch = packed_batch(LENGTHS, 300)
    expected = alone(model, batch)
    half = copy.deepcopy(model).bfloat16().to(needs.DEVICE)
    chosen = kernels.choose(half)
    assert chosen.scorer.packed and chosen.scorer.fused, chosen.notes
    found = chosen.scorer(half, on_device(batch)).logps
    torch.testing.assert_close(found.cpu(), expected, rtol=0.05, atol=0.3)


def test_a_shared_beginning_gives_the_same_as_the_whole():
    model = tiny_model().to(needs.DEVICE)
    assert kernels.choose(model).shares
    assert kernels.choose(copy.deepcopy(model).bfloat16()).shares
