"""One training step on a device equals the same step on a CPU, in float32."""

import copy

import pytest

from fixtures_models import tiny_lora, tiny_model
from gpu import needs
from gpu.test_scores import on_device
from numerics.packed import gradients, packed_batch
from tunesmith.engine import kernels
from tunesmith.objectives.sft import SFT
from tunesmith.optimizers.adamw import AdamW

pytestmark = needs.cuda


def step(model, batch):
    """A step of a run: the loss, the gradients and the weights after it."""
    scorer = kernels.choose(model).scorer
    optimizer = AdamW(learning_rate=1e-3, weight_decay=0.1).build(model.train())
    loss = SFT().loss(scorer(model, batch), batch).total / SFT().count(batch)
    loss.backward()
    found = {name: one.cpu() for name, one in gradients(model).items()}
    optimizer.step()
    return loss.item(), found, {name: one.detach().cpu() for name, one in model.named_parameters()}


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_step_is_that_of_a_cpu(arch, adapted):
    model = tiny_model(arch=arch)
    model = tiny_lora(model) if adapted else model
    batch = packed_batch((31, 8, 50), 300)
    expected = step(copy.deepcopy(model), batch)
    found = step(model.to(needs.DEVICE), on_device(batch))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for ours, theirs, tolerance in zip(found[1:], expected[1:], (1e-3, 2e-4), strict=True):
        assert ours.keys() == theirs.keys() and ours
        for name, one in theirs.items():
            assert (ours[name] - one).norm() <= tolerance * one.norm() + 1e-6, name
