"""The losses of pairs: by hand, against their papers' formulas written again in float64, and by finite differences."""

import math
import random
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from numerics import papers
from numerics.compared import batch_of, random_samples, value_and_gradient
from tunesmith.objectives._preference_losses import LOSSES, OF_SEVERAL_PAIRS, LossName
from tunesmith.objectives.cpo import CPO
from tunesmith.objectives.dpo import DPO
from tunesmith.objectives.orpo import ORPO
from tunesmith.objectives.simpo import SimPO
from tunesmith.types import Scores

LN2, LN3 = math.log(2), math.log(3)
SMOOTHED = {"robust": 0.25, "exo_pair": 0.25}  # what is tried of those that need label_smoothing to differ


def made(name, **options):
    return DPO(loss_type=name, **({"label_smoothing": SMOOTHED[name]} if name in SMOOTHED else {}) | options)


def answer(*ratios):
    """Tokens whose policy is by these numbers likelier than a reference of -2 each, behind one of the prompt."""
    return [(0.0, 0.0, 0.0), *((-2.0 + ratio, -2.0, 1.0) for ratio in ratios)]


ONE_PAIR = [([answer(LN2, 0.0), answer(0.0)], None)]  # ratios 2 and 1 to the reference; two tokens and one
BY_HAND = {  # beta = 1: sigmoid of the margin and of the better reward is 2/3, and of the worse one 1/2
    "sigmoid": math.log(1.5),
    "hinge": 1 - LN2,
    "ipo": (LN2 / 2 - 0.5) ** 2,
    "robust": (0.75 * math.log(1.5) - 0.25 * LN3) / 0.5,
    "exo_pair": 2 / 3 * math.log(2 / 3 / 0.75) + 1 / 3 * math.log(1 / 3 / 0.25),
    "nca_pair": math.log(1.5) + 0.5 * LN3 + 0.5 * LN2,
    "bco_pair": 2 * math.log(1 + 2**-0.5),  # rewards ln 2 and 0 around their mean
    "sppo_hard": (LN2 - 0.5) ** 2 + 0.25,
    "aot": math.log(1.5),
    "aot_unpaired": math.log(1.5),
    "apo_zero": 1 / 3 + 1 / 2,
    "apo_down": 2 / 3 + 1 / 3,
    "discopop": math.log(1.5) / 3 + 0.5 * 2 / 3,  # of tau = 1
}


@pytest.mark.parametrize("name", LOSSES)
def test_one_pair_by_hand(name):
    objective = made(name, beta=1.0, **({"discopop_tau": 1.0} if name == "discopop" else {}))
    batch, scores = batch_of(ONE_PAIR)
    found = objective.loss(scores, batch)
    assert found.total.item() == pytest.approx(BY_HAND[name], rel=1e-12)
    assert objective.count(batch) == 1
    means = {key: float(total) / count for key, (total, count) in found.metrics.items()}
    assert means == pytest.approx(
        {
            "rewards_chosen": LN2,
            "rewards_rejected": 0.0,
            "margins": LN2,
            "accuracy": 1.0,
            "logps_chosen": -4 + LN2,
            "logps_rejected": -2.0,
        }
    )


def test_two_pairs_by_hand_where_their_order_matters():
    first = [[(0.0, 0.0, 0.0), (-1.0, -1.0, 1.0)], [(0.0, 0.0, 0.0), (-1.0, -2.0, 1.0)]]  # margin 0, reference's 1
    other = [[(0.0, 0.0, 0.0), (-1.0, -3.0, 1.0)], [(0.0, 0.0, 0.0), (-4.0, -3.0, 1.0)]]  # margin 3, reference's 0
    batch, scores = batch_of([(first, None), (other, None)])

    def softplus(*margins):
        return sum(math.log(1 + math.exp(-margin)) for margin in margins)

    # margins 0, 3 against 0, 1; better ratios 0, 2 against the worse ones' -1, 1
    assert DPO(loss_type="aot", beta=1.0).loss(scores, batch).total.item() == pytest.approx(softplus(0, 2))
    assert DPO(loss_type="aot_unpaired", beta=1.0).loss(scores, batch).total.item() == pytest.approx(softplus(1, 1))
    assert DPO(beta=1.0).loss(scores, batch).total.item() == pytest.approx(softplus(-1, 3))


def sequences(samples, logps):
    """Each sample's answers as lists of (log-probability, reference, weight), the first cut from a tensor [1, T]."""
    flat = iter(logps[0])
    return [[[(next(flat), *token[1:]) for token in one] for one in several] for several, _ in samples]


def summed(tokens, limit=None, alpha=1.0):
    """(log-ratio, log-probability, length) of an answer, whose tokens beyond the limit count alpha."""
    learned = [token for token in tokens if token[2]]
    scale = [w * (1.0 if limit is None or number < limit else alpha) for number, (_, _, w) in enumerate(learned)]
    policy = sum(w * logp for w, (logp, _, _) in zip(scale, learned, strict=True))
    reference = sum(w * other for w, (_, other, _) in zip(scale, learned, strict=True))
    return policy - reference, policy, sum(w for _, _, w in learned)


def paper_pairs(samples, logps, alpha=1.0, per_token=False):
    """The pairs of samples, each answer with every one after it."""
    found = []
    for answers in sequences(samples, logps):
        for better, one in enumerate(answers):
            for other in answers[better + 1 :]:
                limit = min(sum(w != 0 for *_, w in side) for side in (one, other))
                pair = [summed(side, limit, alpha) for side in (one, other)]
                found.append([(u / n, p / n, 1.0) for u, p, n in pair] if per_token else pair)
    return found


def agree(objective, samples, independent):
    """Value and gradient are those of an independent function of the log-probabilities [1, T]."""
    batch, scores = batch_of(samples)
    value, gradient = value_and_gradient(objective, batch, scores)
    other = scores.logps.detach().clone().requires_grad_()
    expected = independent(other)
    (expected_gradient,) = torch.autograd.grad(expected, other)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("answers", [2, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_papers(name, answers):
    samples = random_samples(5, answers, seed=3)
    objective = made(name, beta=0.3)
    epsilon = objective.label_smoothing
    agree(objective, samples, lambda logps: papers.loss(name, paper_pairs(samples, logps), 0.3, epsilon))
    batch, _ = batch_of(samples)
    assert objective.count(batch) == len(paper_pairs(samples, torch.zeros(1, batch.weight.shape[1])))


@pytest.mark.parametrize("name", ["sigmoid", "aot", "aot_unpaired"])
def test_label_smoothing_is_of_these_too(name):
    samples = random_samples(5, seed=4)
    objective = DPO(loss_type=name, label_smoothing=0.1)
    agree(objective, samples, lambda logps: papers.loss(name, paper_pairs(samples, logps), 0.1, 0.1))


DERIVATIVES = {  # f'(u), each with f'(1) = 0
    "forward_kl": lambda u: 1 - 1 / u,
    "js_divergence": lambda u: torch.log(2 * u / (1 + u)),
    "alpha_divergence": lambda u: (1 - u**-0.3) / 0.3,
}


@pytest.mark.parametrize("kind", DERIVATIVES)
@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "robust", "exo_pair", "discopop"])
def test_other_divergences_are_their_derivatives(name, kind):
    samples = random_samples(5, seed=5)
    objective = made(name, f_divergence=kind, **({"f_alpha": 0.3} if kind == "alpha_divergence" else {}))
    epsilon = objective.label_smoothing
    agree(
        objective,
        samples,
        lambda logps: papers.loss(name, paper_pairs(samples, logps), 0.1, epsilon, f=DERIVATIVES[kind]),
    )


@pytest.mark.parametrize("name", ["sigmoid", "nca_pair", "aot", "sppo_hard"])
def test_longer_answers_count_less_beyond_the_shorter_ones_length(name):
    samples = random_samples(6, 3, seed=6)
    agree(made(name, ld_alpha=0.3), samples, lambda logps: papers.loss(name, paper_pairs(samples, logps, 0.3), 0.1))


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "aot", "apo_down", "bco_pair"])
def test_length_normalised_are_means_over_the_tokens(name):
    samples = random_samples(6, seed=7)
    agree(
        made(name, length_normalised=True),
        samples,
        lambda logps: papers.loss(name, paper_pairs(samples, logps, per_token=True), 0.1),
    )


def test_a_mixture_is_the_weighted_sum_with_the_likelihood_of_the_better_answer():
    samples = random_samples(5, 3, seed=8)
    objective = DPO(loss_type={"sigmoid": 0.8, "bco_pair": 0.2}, sft_weight=1.5, ld_alpha=0.5)

    def mixed(logps):
        pairs = paper_pairs(samples, logps, 0.5)
        likelihood = sum(-one[1] / one[2] for one, _ in paper_pairs(samples, logps))  # in full
        return 0.8 * papers.loss("sigmoid", pairs, 0.1) + 0.2 * papers.loss("bco_pair", pairs, 0.1) + 1.5 * likelihood

    agree(objective, samples, mixed)
    batch, scores = batch_of(samples)
    found = objective.loss(scores, batch)
    parts = {name: float(total) / count for name, (total, count) in found.metrics.items() if name[:5] == "loss_"}
    assert set(parts) == {"loss_sigmoid", "loss_bco_pair", "loss_sft"}
    assert sum(parts.values()) == pytest.approx(found.total.item() / 15)


def test_weights_of_tokens_count_in_sums_and_lengths():
    tokens = [(0.0, 0.0, 0.0), (-1.0, -1.5, 0.5), (-2.0, -1.0, 2.0)]
    samples = [([tokens, answer(0.25)], None)]
    for name in ("sigmoid", "ipo"):
        agree(
            DPO(loss_type=name), samples, lambda logps, name=name: papers.loss(name, paper_pairs(samples, logps), 0.1)
        )


def simpo(samples, logps):
    pairs = paper_pairs(samples, logps)
    own = -sum(papers.log_sigmoid(2.5 / one[2] * one[1] - 2.5 / other[2] * other[1] - 0.7) for one, other in pairs)
    return own - 0.2 * sum(one[1] / one[2] for one, _ in pairs)


def cpo(samples, logps):
    pairs = paper_pairs(samples, logps)
    return -sum(papers.log_sigmoid(0.4 * one[1] - 0.4 * other[1]) + 0.6 * one[1] / one[2] for one, other in pairs)


def orpo(samples, logps):
    def odds(one):
        probability = torch.exp(one[1] / one[2])
        return probability / (1 - probability)

    pairs = paper_pairs(samples, logps)
    ratios = [torch.log(odds(one) / odds(other)) for one, other in pairs]
    return -sum(one[1] / one[2] for one, _ in pairs) - 0.25 * sum(map(papers.log_sigmoid, ratios))


WITHOUT_REFERENCE = [
    (SimPO(beta=2.5, gamma=0.7, sft_weight=0.2), simpo),
    (CPO(beta=0.4, sft_weight=0.6), cpo),
    (ORPO(beta=0.25), orpo),
]


@pytest.mark.parametrize(("objective", "paper"), WITHOUT_REFERENCE, ids=lambda one: type(one).__name__)
def test_objectives_without_a_reference_are_their_papers(objective, paper):
    samples = random_samples(5, 3, seed=9)
    agree(objective, samples, lambda logps: paper(samples, logps))
    assert type(objective).needs == () and not objective.compares_samples()
    assert objective.count(batch_of(samples)[0]) == 15


def test_objectives_without_a_reference_by_hand():
    half, third = -LN2, -LN3  # of the better answer every token has probability 1/2, of the worse one 1/3
    better = [(0.0, 0.0, 0.0), (half, 0.0, 1.0), (half, 0.0, 1.0)]
    batch, scores = batch_of([([better, [(0.0, 0.0, 0.0), (third, 0.0, 1.0)]], None)])

    def total(objective):
        return objective.loss(scores, batch).total.item()

    assert total(SimPO(beta=1.0, gamma=0.0)) == pytest.approx(math.log(1 + 2 / 3))  # sigmoid(ln 3/2) = 3/5
    assert total(SimPO(beta=1.0, gamma=math.log(1.5))) == pytest.approx(LN2)  # as far ahead as asked
    assert total(CPO(beta=1.0, sft_weight=0.0)) == pytest.approx(math.log(1 + 4 / 3))  # 1/4 against 1/3
    assert total(CPO(beta=1.0)) == pytest.approx(math.log(1 + 4 / 3) + LN2)
    assert total(ORPO(beta=2.0)) == pytest.approx(LN2 + 2 * math.log(1.5))  # odds 1 and 1/2


EVERY = [made(name) for name in LOSSES] + [
    DPO(f_divergence="alpha_divergence"),
    DPO(ld_alpha=0.5, length_normalised=True, sft_weight=1.0, loss_type={"sigmoid": 1.0, "apo_zero": 2.0}),
    *(objective for objective, _ in WITHOUT_REFERENCE),
]


@pytest.mark.parametrize("objective", EVERY, ids=repr)
def test_gradients_are_those_of_finite_differences(objective):
    if objective.model_dump().get("loss_type") == "bco_pair":
        pytest.skip("its shift has no gradient, by its paper: compared with the formula above")
    batch, scores = batch_of(random_samples(3, 3, seed=10))
    assert torch.autograd.gradcheck(lambda logps: objective.loss(Scores(logps), batch).total, scores.logps)


@pytest.mark.parametrize("objective", EVERY, ids=repr)
def test_the_order_of_samples_in_a_batch_changes_nothing(objective):
    samples = random_samples(6, 3, seed=11)
    shuffled = random.Random(1).sample(samples, len(samples))
    (value, gradient), (other, moved) = (
        value_and_gradient(objective, *batch_of(several)) for several in (samples, shuffled)
    )
    torch.testing.assert_close(value, other, rtol=1e-12, atol=0)
    assert sorted(gradient[0].tolist()) == pytest.approx(sorted(moved[0].tolist()), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("objective", EVERY, ids=repr)
def test_a_loss_that_says_so_alone_depends_on_other_samples(objective):
    samples = random_samples(4, 2, seed=12)
    whole = value_and_gradient(objective, *batch_of(samples))[0]
    parts = sum(value_and_gradient(objective, *batch_of(samples[at : at + 2]))[0] for at in (0, 2))
    assert objective.compares_samples() == (abs(whole - parts).item() > 1e-9)


@pytest.mark.parametrize("objective", EVERY, ids=repr)
def test_far_ratios_have_a_finite_loss_and_gradient(objective):
    far = [([answer(-300.0), answer(300.0)], None), ([answer(300.0), answer(-300.0)], None)]
    value, gradient = value_and_gradient(objective, *batch_of(far, torch.float32))
    assert value.isfinite() and gradient.isfinite().all()


def test_certain_answers_have_finite_odds():
    batch, scores = batch_of([([[(0.0, 0.0, 0.0), (0.0, 0.0, 1.0)], answer(0.0)], None)])
    value, gradient = value_and_gradient(ORPO(), batch, scores)
    assert value.isfinite() and gradient.isfinite().all()


def test_every_loss_has_its_name_and_those_of_several_pairs_say_so():
    assert set(get_args(LossName)) == set(LOSSES)
    assert {name for name in LOSSES if made(name).compares_samples()} == set(OF_SEVERAL_PAIRS)
    assert DPO(loss_type={"sigmoid": 1.0, "aot": 0.1}).compares_samples()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_type": "sigmod"}, "there is no loss 'sigmod'. Did you mean 'sigmoid'?"),
        ({"loss_type": {"hing": 1.0}}, "there is no loss 'hing'. Did you mean 'hinge'?"),
        ({"loss_type": {"hinge": 0.0}}, "greater than 0"),
        ({"loss_type": {}}, "at least 1 item"),
        ({"loss_type": "apo_zero", "f_divergence": "forward_kl"}, "f_divergence is .* and apo_zero is not one: use it"),
        ({"loss_type": {"sigmoid": 1, "aot": 1}, "f_divergence": "forward_kl"}, "and aot is not one"),
        ({"f_alpha": 0.3}, "f_alpha changes nothing of reverse_kl: set f_divergence=alpha_divergence"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing changes nothing of hinge: it is for sigmoid"),
        ({"loss_type": "exo_pair"}, "label_smoothing must be greater than 0 for exo_pair"),
        ({"discopop_tau": 0.1}, "discopop_tau changes nothing of sigmoid"),
        ({"loss_type": "ipo", "length_normalised": True}, "length_normalised changes nothing of ipo"),
    ],
)
def test_options_that_change_nothing_or_make_no_sense_are_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        DPO(**options)
