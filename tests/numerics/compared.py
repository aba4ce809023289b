"""Random samples of answers to compare, as a batch in float64 and as plain lists of their tokens' numbers.

A token is (log-probability, reference's log-probability, weight); weight 0 is a token of the prompt.
"""

import random
from itertools import combinations

import torch

from tunesmith.types import Batch, Scores


def random_samples(number, answers=2, seed=0, label=None):
    """Samples of some answers each, of different lengths, whose first token is not learned."""
    chance = random.Random(seed)

    def answer():
        tokens = [(chance.uniform(-3, -0.1), chance.uniform(-3, -0.1), 1.0) for _ in range(chance.randint(1, 6))]
        return [(0.0, 0.0, 0.0), *tokens]

    return [([answer() for _ in range(answers)], None if label is None else label(one)) for one in range(number)]


def batch_of(samples, dtype=torch.float64):
    """The batch of samples (answers, label), and the log-probabilities of its tokens as scores."""
    answers = [(place, label, one) for several, label in samples for place, one in enumerate(several)]
    lengths = torch.tensor([len(one) for *_, one in answers])
    logps, reference, weight = torch.tensor([token for *_, one in answers for token in one], dtype=dtype).T.unsqueeze(1)
    nothing = torch.zeros(1, int(lengths.sum()), dtype=torch.int64)
    batch = Batch(
        input_ids=nothing,
        position_ids=nothing,
        target=nothing,
        weight=weight,
        seq=torch.repeat_interleave(torch.arange(len(lengths)), lengths)[None],
        label=torch.tensor([torch.nan if label is None else float(label) for _, label, _ in answers]),
        offsets=torch.tensor([0, *lengths.cumsum(0)], dtype=torch.int32),
        longest=int(lengths.max()),
        branch=torch.tensor([place for place, *_ in answers]),
        reference=reference,
    )
    return batch, Scores(logps.clone().requires_grad_())


def pairs_of(samples):
    """The answers of each pair, the better one first, as tensors of tokens [n, 3]."""
    return [pair for several, _ in samples for pair in combinations(several, 2)]


def value_and_gradient(objective, batch, scores):
    """The summed loss and its gradient with respect to each token."""
    total = objective.loss(scores, batch).total
    (gradient,) = torch.autograd.grad(total, scores.logps)
    return total.detach(), gradient
