"""Samples with a teacher's likeliest words, kept beside the rendered rows as a reference's log-probabilities are.

A file holds a record for each learned token of a store: the words, and their log-probabilities with that of all other
words together, NaN where none was made yet.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from tunesmith import atomic
from tunesmith.data.batch import WholeSet
from tunesmith.data.pack import offsets_of
from tunesmith.data.reference import ROOM, Referenced
from tunesmith.errors import DataError
from tunesmith.types import Tokens

FOLDER = "teacher"
WRITTEN_BYTES = 1 << 24  # at once, of a new file


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


def missing(firsts: np.ndarray, wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Those of the wanted samples of which a learned token has no record in `values`."""
    lacking = np.concatenate([[0], np.cumsum(np.isnan(values["logps"][:, 0]))])[firsts]  # [M+1] before each sample
    return wanted[np.diff(lacking)[wanted] > 0]


def open_file(path: Path, size: int, k: int) -> np.ndarray:
    """The records of a file, mapped to be written; a new one has none yet. Raises DataError when there is no room."""
    kind = record(k)
    if not path.is_file() or path.stat().st_size != size * kind.itemsize:
        at_once = max(1, WRITTEN_BYTES // kind.itemsize)
        none = np.zeros(min(at_once, size), kind)
        none["logps"] = np.nan
        with atomic.room(path.parent, DataError, ROOM):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic.written(path) as file:
                for start in range(0, size, at_once):
                    file.write(none[: size - start].tobytes())
    return np.memmap(path, kind, "r+").view(np.ndarray)
