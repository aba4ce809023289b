"""Samples with the log-probabilities of their tokens under a frozen model, kept beside the rendered rows.

There is one number for each token of a store, NaN where none was made yet (data/kept.py): a run makes those of the
samples that it will see, and another one with the same rows and the same model finds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from tunesmith.data.batch import WholeSet
from tunesmith.data.pack import offsets_of
from tunesmith.types import Tokens

FOLDER = "reference"
NONE = np.array(np.nan, "<f4")


@dataclass(frozen=True, eq=False)
class Referenced:
    """Samples, each token with a number from `values` [T], which are laid out as the samples' sequences in full."""

    samples: WholeSet
    values: np.ndarray

    @property
    def label(self) -> np.ndarray:
        """The labels of the samples: [M]."""
        return self.samples.label

    @property
    def digest(self) -> str:
        """What tells these samples from others."""
        return self.samples.digest

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def lengths(self) -> np.ndarray:
        """The tokens that each sample takes in a row: [M]."""
        return self.samples.lengths()

    def tokens(self) -> np.ndarray:
        """The tokens of each sample, all branches together and also what they share: [M]."""
        return self.samples.tokens()

    def learned(self) -> np.ndarray:
        """Which tokens are learned: bool [T]."""
        return self.samples.learned()

    def branches(self, sample: int) -> list[Tokens]:
        """The token sequences of a sample, with their numbers."""
        branches = self.samples.branches(sample)
        return [
            replace(tokens, reference=np.where(np.isnan(own), 0, own))  # where nothing is asked
            for tokens, own in zip(branches, self.numbers(sample, branches), strict=True)
        ]

    def numbers(self, sample: int, branches: Sequence[Tokens]) -> list[np.ndarray]:
        """The numbers of the tokens of each sequence of a sample, NaN where there is none yet."""
        bounds = np.cumsum([self._first[sample], *map(len, branches)])
        return [self.values[first:last] for first, last in pairwise(bounds.tolist())]

    @cached_property
    def _first(self) -> np.ndarray:
        return offsets_of(self.samples.tokens())


def places(samples: WholeSet) -> Referenced:
    """The samples, each token with its own place among all."""
    return Referenced(samples, np.arange(int(samples.tokens().sum())))


def missing(samples: WholeSet, wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Those of the wanted samples of which a learned token has no number in `values`."""
    firsts = offsets_of(samples.tokens())
    lacks = np.logical_or.reduceat(samples.learned() & np.isnan(values), firsts[:-1])  # [M]
    return wanted[lacks[wanted]]
