"""Position skipping (PoSE, arXiv 2309.10400): short sequences whose positions reach as far as those of long ones.

The positions of a sample are cut in two at a random place, and the second part begins a random gap later. Over many
samples every distance up to the reach is seen, at the cost of the short ones.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from tunesmith.recipe_data import Data

NUMBER = 7  # which of the generators of data.seed this is


@dataclass(frozen=True, slots=True)
class Skips:
    """How far positions reach, and the seed of the gaps."""

    reach: int  # tokens: positions are below it
    seed: int

    @classmethod
    def of(cls, data: Data) -> "Skips | None":
        """The skips of a recipe's data; None where positions follow one another."""
        return None if data.position_skipping is None else cls(data.position_skipping, data.seed)

    def positions(self, row: dict[str, np.ndarray], epoch: int = 0) -> np.ndarray:
        """The positions of each token of a packed row: [T] int64.

        A sample's are drawn by the seed, its first tokens' ids and the epoch alone, so they are the same wherever it
        is packed. Its sequences are cut at the same place, so that what they share keeps its positions.
        """
        found: list[np.ndarray] = []
        starts = np.flatnonzero(row["branch"] == 0)  # sequence that begins each sample
        ends = np.append(starts[1:], len(row["lengths"]))
        bounds = np.concatenate([[0], np.cumsum(row["lengths"])])
        for first, last in zip(starts, ends, strict=True):
            shared, lengths = row["prefix"][first:last, 1], row["lengths"][first:last]
            ids = row["input_ids"][bounds[first] : bounds[first + 1]]
            whole = self._drawn(int((shared + lengths).max()), zlib.crc32(ids.tobytes()), epoch)
            found += [whole[before : before + own] for before, own in zip(shared, lengths, strict=True)]
        return np.concatenate(found)

    def _drawn(self, length: int, sample: int, epoch: int) -> np.ndarray:
        """Positions of a sequence: 0, 1, 2 ... with one gap, all below the reach where the sequence is shorter."""
        places = np.arange(length)
        if not 1 < length < self.reach:
            return places
        draw = np.random.default_rng([self.seed, NUMBER, epoch, sample])
        places[draw.integers(1, length) :] += draw.integers(0, self.reach - length + 1)
        return places
