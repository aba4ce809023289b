"""The small objectives: numbers by hand, and their gradients in float64 against what the papers say."""

import math
from dataclasses import replace

import pytest
import torch

from numerics.packed import packed_batch
from tunesmith.objectives.dft import DFT
from tunesmith.objectives.distill import Distill
from tunesmith.objectives.focal import Focal
from tunesmith.objectives.sft import SFT
from tunesmith.types import Divergence, Scores

BATCH = replace(packed_batch((3,), 9), weight=torch.tensor([[1.0, 0.5, 0.0]]))
PROBABILITIES = torch.tensor([[0.25, 0.5, 1.0]])  # the last is asked of nobody: a log-probability of 0


def scores(dtype=torch.float32, **others):
    return Scores(PROBABILITIES.to(dtype).log().requires_grad_(), **others)


def slope(objective, **others):
    """The gradient of the loss by each log-probability, in float64."""
    found = scores(torch.float64, **others)
    (gradient,) = torch.autograd.grad(objective.loss(found, BATCH).total, found.logps)
    return gradient[0].tolist()


def test_dft_by_hand():
    """-(1 * 1/4 ln 1/4 + 1/2 * 1/2 ln 1/2); a slope is minus weight times probability."""
    loss = DFT().loss(scores(), BATCH)
    assert loss.total.item() == pytest.approx(0.25 * math.log(4) + 0.25 * math.log(2))
    assert loss.metrics["nll"] == (pytest.approx(math.log(4) + 0.5 * math.log(2)), 1.5)
    assert DFT().count(BATCH) == 1.5
    assert slope(DFT()) == pytest.approx([-0.25, -0.25, 0])


def test_the_gradient_of_dft_by_a_probability_is_that_of_the_probability():
    """Its point: d/dp of -sg(p) log p is -1, whatever p, where the likelihood's is -1 / p."""
    p = torch.tensor([[0.001, 0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(DFT().loss(Scores(p.log()), BATCH).total, p)
    assert gradient[0].tolist() == pytest.approx([-1, -0.5, 0])


def test_focal_by_hand():
    """With gamma 1: -(3/4 ln 1/4 + 1/2 * 1/2 ln 1/2)."""
    loss = Focal(gamma=1.0).loss(scores(), BATCH)
    assert loss.total.item() == pytest.approx(0.75 * math.log(4) + 0.25 * math.log(2))
    assert loss.metrics["nll"] == (pytest.approx(math.log(4) + 0.5 * math.log(2)), 1.5)
    assert Focal().count(BATCH) == 1.5


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_the_gradient_of_focal(gamma):
    """d/dlogp of -(1-p)^g logp is g p (1-p)^(g-1) logp - (1-p)^g: finite also where p is 1 and the weight 0."""

    def by_hand(p):
        return gamma * p * (1 - p) ** (gamma - 1) * math.log(p) - (1 - p) ** gamma

    assert slope(Focal(gamma=gamma)) == pytest.approx([by_hand(0.25), 0.5 * by_hand(0.5), 0])


def test_focal_without_its_focus_is_sft():
    torch.testing.assert_close(Focal(gamma=0).loss(scores(), BATCH).total, SFT().loss(scores(), BATCH).total)
    assert slope(Focal(gamma=0)) == slope(SFT())


def test_distill_by_hand():
    """T^2 (1 * 0.3 + 1/2 * 0.2) + 1/4 (ln 4 + 1/2 ln 2)."""
    objective = Distill(temperature=2.0, sft_weight=0.25)
    loss = objective.loss(scores(divergence=torch.tensor([[0.3, 0.2, 0.0]])), BATCH)
    nll = math.log(4) + 0.5 * math.log(2)
    assert loss.total.item() == pytest.approx(4 * 0.4 + 0.25 * nll)
    assert loss.metrics == {"divergence": (pytest.approx(0.4), 1.5), "nll": (pytest.approx(nll), 1.5)}
    assert objective.count(BATCH) == 1.5
    assert slope(objective, divergence=torch.zeros(1, 3)) == pytest.approx([-0.25, -0.125, 0])


def test_distill_says_what_is_measured():
    assert Distill().teaching() == Divergence("forward_kl", 0.5, 1.0, None, likelihood=False)
    objective = Distill(divergence="jsd", jsd_weight=0.1, temperature=2.0, top_k=8, sft_weight=0.5)
    assert objective.teaching() == Divergence("jsd", 0.1, 2.0, 8, likelihood=True)
    assert SFT().teaching() is None
