"""Numbers, scales and zeros of a plain weight by half-quadratic quantisation (HQQ, Badri and Shaji 2023).

A group spans its range: scale = (largest - smallest) / (2^bits - 1). Its zero is what makes the sum of |w - w'|^p
least, for p below 1, which leaves few large errors: the error is split into a part e that is shrunk, and a zero that is
the mean of what remains, one after the other (mobiusml.github.io/hqq_blog):

    e    = sign(w - w') * max(|w - w'| - |w - w'|^(p - 1) / beta, 0)
    zero = mean(number - (w - e) / scale)

Letters: O and I features out and in, G groups of a row, S weights of a group.
"""

import torch

from tunesmith.engine.packed import Numbers

NORM, BETA, GROWTH, ROUNDS = 0.7, 10.0, 1.01, 20  # p; the weight of what remains, which grows by round; most rounds
LEAST_RANGE, LARGEST_INVERSE = 1e-4, 2e4  # of a group that has a scale of its own; of a scale, for half precision


@torch.no_grad()
def rounded(weight: torch.Tensor, bits: int, group_size: int) -> Numbers:
    """A weight [O, I] as numbers, with scales and zeros in float16. Raises ValueError where groups do not divide I."""
    rows, columns = weight.shape
    if columns % group_size:
        raise ValueError(f"groups of {group_size} do not divide a width of {columns}")
    groups = weight.float().view(-1, group_size)  # [O * G, S]
    inverse, zero = solved(groups, bits)
    numbers = _numbers(groups, inverse, zero, bits).to(torch.uint8).view(rows, columns)
    return Numbers(numbers, (1 / inverse).half().view(rows, -1), zero.half().view(rows, -1))


def solved(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of the scale and the zero of each row of weights [N, S]: [N, 1] both."""
    least, most = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    span = most - least
    inverse = torch.where(span <= LEAST_RANGE, torch.ones_like(span), ((1 << bits) - 1) / span)
    inverse = inverse.clamp(max=LARGEST_INVERSE)
    zero = best = -least * inverse
    lowest, beta = torch.inf, BETA
    for _ in range(ROUNDS):
        numbers = _numbers(groups, inverse, zero, bits)
        error = groups - (numbers - zero) / inverse
        size = error.abs()
        mean = float(size.mean())
        if mean >= lowest:
            break
        lowest, best = mean, zero
        shrunk = (size - size.pow(NORM - 1) / beta).clamp_min(0) * error.sign()
        zero = (numbers - (groups - shrunk) * inverse).mean(1, keepdim=True)
        beta *= GROWTH
    else:
        best = zero  # each round was better than the one before it
    return inverse, best


def _numbers(groups: torch.Tensor, inverse: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return (groups * inverse + zero).round().clamp(0, (1 << bits) - 1)
