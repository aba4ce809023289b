"""What every objective says of itself is so."""

from dataclasses import replace

import pytest
import torch

from numerics.packed import packed_batch
from tunesmith.component import all_of
from tunesmith.objectives.sft import SFT
from tunesmith.seams import Objective
from tunesmith.types import LossSum, Scores


@pytest.mark.parametrize("name", sorted(all_of(Objective)))
def test_a_likelihood_weighs_every_log_probability_as_the_batch_says(name):
    objective = all_of(Objective)[name]()
    batch = packed_batch((7, 5), 50)
    batch = replace(batch, branch=torch.tensor([0, 1]), label=torch.tensor([1.0, 0.0]), reference=-batch.weight)
    logps = torch.randn(batch.weight.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    total = objective.loss(Scores(logps, divergence=batch.weight, values=values), batch).total
    (gradient,) = torch.autograd.grad(total, logps, allow_unused=True)  # None: the loss reads no log-probability
    assert objective.is_likelihood() == (gradient is not None and torch.equal(gradient, -batch.weight))


def test_a_loss_of_ones_own_is_not_taken_for_the_one_that_it_replaces():
    class Focal(SFT):
        def loss(self, scores, batch):
            return LossSum((batch.weight * scores.logps.square()).sum())

    assert SFT().is_likelihood() and not Focal().is_likelihood()
