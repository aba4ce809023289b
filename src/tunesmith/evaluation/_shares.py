"""How sure a share of right answers is, and whether two of them differ by more than chance."""

import math
from collections.abc import Sequence

Interval = tuple[float, float]
Z = 1.959963984540054  # of the normal distribution: 95 % lie between -Z and Z


def wilson(right: int, asked: int) -> Interval:
    """The 95 % interval of a share by Wilson's score (1927), which stays within 0 and 1 and holds for few questions."""
    share, spread = right / asked, Z * Z / asked
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / asked + spread / (4 * asked))
    return max(0.0, middle - half), min(1.0, middle + half)


def resampled(sums: Sequence[tuple[float, float]], seed: int = 0, rounds: int = 2000) -> Interval:
    """The 95 % interval of a mean, by the bootstrap (Efron 1979): groups of (sum, count) are drawn with replacement."""
    import numpy as np

    pairs = np.asarray(sums, np.float64)  # [G, 2]
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(rounds, len(pairs)))
    totals = pairs[drawn].sum(1)  # [rounds, 2]
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])
    return float(low), float(high)


def by_chance(one: int, other: int) -> float:
    """How likely two equal models differ so much (McNemar's test, exact): by the questions that one alone got right.

    It is the two-sided probability of a fair coin, thrown once for each question that one of two models got right and
    the other did not, to fall so unevenly or more so.
    """
    thrown = one + other
    tail = sum(math.comb(thrown, number) for number in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**thrown)
