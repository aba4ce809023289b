"""KTO: by hand, against its paper's formula in float64, and what is trained of it."""

import math
import random

import pytest
import torch

from numerics.compared import batch_of, random_samples, value_and_gradient
from tunesmith.objectives.kto import KTO
from tunesmith.types import Scores

LN2 = math.log(2)


def tokens(ratio):
    """An answer of one token that is by this number likelier than under the reference."""
    return [(0.0, 0.0, 0.0), (-3.0 + ratio, -3.0, 1.0)]


def judged(number, seed):
    return random_samples(number, 2, seed, label=lambda one: float(one % 3 == 0))


def paper(samples, logps, beta, good_weight, bad_weight):
    """The summed loss: lambda_y - v(x, y), with z the mean log-ratio of the second sequences, at least 0."""
    flat, ratios = iter(logps[0]), []
    for several, _ in samples:
        ratios.append([sum((next(flat) - token[1]) * token[2] for token in one) for one in several])
    z = max(0.0, sum(mismatched.item() for _, mismatched in ratios) / len(ratios))
    total = 0.0
    for (own, _), (_, label) in zip(ratios, samples, strict=True):
        if label:
            total = total + good_weight - good_weight * torch.sigmoid(beta * (own - z))
        else:
            total = total + bad_weight - bad_weight * torch.sigmoid(beta * (z - own))
    return total


@pytest.mark.parametrize(
    ("mismatched", "kl"),
    [((LN2, 3 * LN2), 2 * LN2), ((-LN2, -3 * LN2), 0.0)],  # an estimate below 0 is none
)
def test_two_samples_by_hand(mismatched, kl):
    good, bad = tokens(3 * LN2), tokens(2 * LN2)
    batch, scores = batch_of([([good, tokens(mismatched[0])], 1.0), ([bad, tokens(mismatched[1])], 0.0)])
    objective = KTO(beta=1.0, desirable_weight=3.0, undesirable_weight=5.0)
    # sigmoid(ln 2) = 2/3 and sigmoid(0) = 1/2; without KL sigmoid(3 ln 2) = 8/9 and sigmoid(-2 ln 2) = 1/5
    value = 3 * (1 - 2 / 3) + 5 * (1 - 1 / 2) if kl else 3 * (1 - 8 / 9) + 5 * (1 - 1 / 5)
    found = objective.loss(scores, batch)
    assert found.total.item() == pytest.approx(value)
    assert objective.count(batch) == 2
    assert {name: float(total) / count for name, (total, count) in found.metrics.items()} == pytest.approx(
        {
            "kl": kl,
            "accuracy": 1.0,
            "rewards_desirable": 3 * LN2,
            "rewards_undesirable": 2 * LN2,
            "logps_desirable": -3 + 3 * LN2,
            "logps_undesirable": -3 + 2 * LN2,
        }
    )


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_value_and_gradient_are_the_papers(seed):
    samples = judged(7, seed)
    objective = KTO(beta=0.4, desirable_weight=0.5, undesirable_weight=1.5)
    batch, scores = batch_of(samples)
    value, gradient = value_and_gradient(objective, batch, scores)
    other = scores.logps.detach().clone().requires_grad_()
    expected = paper(samples, other, 0.4, 0.5, 1.5)
    (expected_gradient,) = torch.autograd.grad(expected, other)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_the_mismatched_sequences_are_never_trained_and_change_the_loss():
    near, far = ([([own, tokens(ratio)], label) for (own, _), label in judged(6, seed=5)] for ratio in (2.0, 4.0))
    batch, scores = batch_of(near)
    value, gradient = value_and_gradient(KTO(), batch, scores)
    mismatched = batch.branch[batch.seq] == 1
    assert gradient[mismatched].abs().max() == 0
    assert (gradient[~mismatched & (batch.weight != 0)] != 0).all()
    assert abs(value_and_gradient(KTO(), *batch_of(far))[0] - value) > 1e-3


def test_gradients_are_those_of_finite_differences():
    batch, scores = batch_of(judged(5, seed=6))
    own, others = batch.branch[batch.seq] == 0, scores.logps.detach().clone()  # the KL has no gradient
    assert torch.autograd.gradcheck(
        lambda logps: KTO().loss(Scores(torch.where(own, logps, others)), batch).total, scores.logps
    )


def test_the_order_of_samples_changes_nothing_and_their_number_does():
    samples = judged(8, seed=7)
    shuffled = random.Random(1).sample(samples, len(samples))
    value, gradient = value_and_gradient(KTO(), *batch_of(samples))
    other, moved = value_and_gradient(KTO(), *batch_of(shuffled))
    torch.testing.assert_close(value, other, rtol=1e-12, atol=0)
    assert sorted(gradient[0].tolist()) == pytest.approx(sorted(moved[0].tolist()), rel=1e-10, abs=1e-14)
    halves = sum(value_and_gradient(KTO(), *batch_of(part))[0] for part in (samples[:4], samples[4:]))
    assert KTO().compares_samples() and abs(value - halves) > 1e-6


def test_accuracy_is_of_all_pairs_of_a_good_and_a_bad_one():
    ratios = [(1.0, 1.0), (3.0, 1.0), (2.0, 0.0), (0.0, 0.0), (1.0, 0.0)]  # ratio and label
    batch, scores = batch_of([([tokens(ratio), tokens(0.0)], label) for ratio, label in ratios])
    total, count = KTO().loss(scores, batch).metrics["accuracy"]
    assert (float(total), count) == (4, 6)  # 1 is more than 0 but not than 1 or 2, 3 than all


def test_samples_of_one_kind_alone_have_a_loss():
    for label in (0.0, 1.0):
        batch, scores = batch_of(random_samples(3, 2, label=lambda _, label=label: label))
        found = KTO().loss(scores, batch)
        assert found.total.isfinite() and found.metrics["accuracy"] == (0, 0)
