"""Samples with a teacher's likeliest words, kept beside the rendered rows as a reference's log-probabilities are.

There is a record for each learned token of a store (data/kept.py): the words, and their log-probabilities with that of
all other words together, NaN where none was made yet.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from tunesmith.data.batch import WholeSet
from tunesmith.data.pack import offsets_of
from tunesmith.data.reference import Referenced
from tunesmith.types import Tokens

FOLDER = "teacher"


@dataclass(frozen=True, eq=False)
class Taught(Referenced):
    """Samples, each learned token with a value of `values`: those of sample i begin at `firsts[i]`."""

    firsts: np.ndarray  # [M+1]

    def branches(self, sample: int) -> list[Tokens]:
        """The token sequences of a sample, with their values."""
        branches = self.samples.branches(sample)
        bounds = np.cumsum([self.firsts[sample], *(one.trained for one in branches)])
        return [
            replace(tokens, teacher=self.values[first:last])
            for tokens, (first, last) in zip(branches, pairwise(bounds.tolist()), strict=True)
        ]


def firsts_of(samples: WholeSet) -> np.ndarray:
    """Where the learned tokens of each sample begin among all, and how many there are: [M+1]."""
    firsts = offsets_of(samples.tokens())
    return offsets_of(np.add.reduceat(samples.learned(), firsts[:-1], dtype=np.int64))


def record(k: int) -> np.dtype:
    """What is kept of a token: k words, their log-probabilities and that of all others together."""
    return np.dtype([("words", "<i4", (k,)), ("logps", "<f4", (k + 1,))])


def none(k: int) -> np.ndarray:
    """The record of a token of which none was made: []."""
    found = np.zeros((), record(k))
    found["logps"] = np.nan
    return found


def missing(firsts: np.ndarray, wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Those of the wanted samples of which a learned token has no record in `values`."""
    lacking = np.concatenate([[0], np.cumsum(np.isnan(values["logps"][:, 0]))])[firsts]  # [M+1] before each sample
    return wanted[np.diff(lacking)[wanted] > 0]
