"""Samples that equal or nearly equal another: found by digests, and by MinHash with banding.

MinHash is of Broder 1997, "On the resemblance and containment of documents"; banding is that of Leskovec, Rajaraman
and Ullman, "Mining of Massive Datasets", chapter 3. What they propose is compared exactly.

Letters: M samples, T tokens of some of them, K hashes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.data.store import Store

RUN = 5  # tokens that are compared together
HASHES = 64
CHUNK_TOKENS = 65_536  # hashed at once: what a processor's own cache holds
MISSED = 1e-3  # of the pairs that are exactly as like as asked for, so many at most are not proposed
SEED = 1997


@dataclass(frozen=True, eq=False)
class Sketched:
    """Some samples of a store, and the least hashes of their runs of tokens: [M, K]."""

    store: Store
    samples: np.ndarray
    least: np.ndarray

    def of(self, samples: np.ndarray) -> "Sketched":
        """The sketches of some of the samples, by their numbers in the store; these must be all of them."""
        return Sketched(self.store, samples, self.least[samples])

    def runs(self, number: int) -> np.ndarray:
        """The hashes of the runs of a sample, each once, in order."""
        return np.unique(_runs(self.store.all_ids(int(self.samples[number]))))


def among(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which digests [M, 2] are among others [N, 2]: [M] bool."""
    maybe = np.isin(keys[:, 0], others[:, 0])
    known = set(map(tuple, others[np.isin(others[:, 0], keys[maybe, 0])].tolist()))
    maybe[maybe] = [tuple(key) in known for key in keys[maybe].tolist()]
    return maybe


def sketched(store: Store, samples: np.ndarray) -> Sketched:
    """The sketches of some samples. Time is linear in tokens, memory 256 bytes a sample."""
    random = np.random.default_rng(SEED)
    factors = random.integers(0, 2**32, HASHES, np.uint32) | np.uint32(1)
    terms = random.integers(0, 2**32, HASHES, np.uint32)
    least = np.empty((len(samples), HASHES), np.uint32)
    for first, last in _chunks(store.lengths()[samples]):
        runs = [_runs(store.all_ids(int(sample))) for sample in samples[first:last]]
        starts = np.cumsum([0, *map(len, runs[:-1])])
        laid = np.concatenate(runs).astype(np.uint32)  # [T]: the upper half would do as well
        for column in range(HASHES):
            least[first:last, column] = np.minimum.reduceat(laid * factors[column] + terms[column], starts)
    return Sketched(store, samples, least)


def near_an_earlier(found: Sketched, likeness: float) -> np.ndarray:
    """Which samples have at least this likeness to an earlier one: [M] bool.

    In each band a sample is compared with the first and with the previous one of its bucket, so that time is linear
    also where very many are alike.
    """
    pairs = []
    for order, starts in _bands(found.least, likeness):
        previous = np.concatenate([order[:1], order[:-1]])
        first = order[np.flatnonzero(starts)][np.cumsum(starts) - 1]
        pairs += [np.stack([order, other], axis=1)[~starts] for other in (previous, first)]
    return _alike(_once(pairs), found, found, likeness)


def near_another(found: Sketched, others: Sketched, likeness: float) -> np.ndarray:
    """Which samples have at least this likeness to one of some others: [M] bool. They are compared as above."""
    number, pairs = len(others.samples), []
    for order, starts in _bands(np.concatenate([others.least, found.least]), likeness):
        own = order >= number  # behind the others of their bucket
        at = np.arange(len(order))
        last = np.maximum.accumulate(np.where(own, -1, at))  # the nearest other before each
        first = np.flatnonzero(starts)[np.cumsum(starts) - 1]
        has = own & (last >= first)
        pairs += [np.stack([order[has] - number, order[place[has]]], axis=1) for place in (last, first)]
    return _alike(_once(pairs), found, others, likeness)


def rows_of_a_band(likeness: float) -> int:
    """As many hashes as a band can have so that alike pairs are proposed: `1 - (1 - s^r)^(K / r)` is the chance."""
    fitting = [r for r in range(1, HASHES + 1) if (1 - likeness**r) ** (HASHES // r) <= MISSED]
    return max(fitting, default=1)


def _bands(least: np.ndarray, likeness: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each band, the samples in the order of their buckets and then their own, and where buckets begin."""
    rows = rows_of_a_band(likeness)
    for start in range(0, HASHES - rows + 1, rows):
        bucket = _mixed(least[:, start : start + rows].T)
        order = np.argsort(bucket, kind="stable")
        ordered = bucket[order]
        starts = np.ones(len(order), bool)
        starts[1:] = ordered[1:] != ordered[:-1]
        yield order, starts


def _once(pairs: Sequence[np.ndarray]) -> np.ndarray:
    """Each pair once, by their first."""
    together = np.concatenate(pairs)
    return np.unique(together, axis=0)


def _alike(pairs: np.ndarray, found: Sketched, others: Sketched, likeness: float) -> np.ndarray:
    """Which samples have the likeness to one that they are paired with: Jaccard's, of their runs of tokens."""
    alike = np.zeros(len(found.samples), bool)
    for one, other in pairs.tolist():
        if not alike[one]:
            own, theirs = found.runs(one), others.runs(other)
            common = len(np.intersect1d(own, theirs, assume_unique=True))
            alike[one] = common >= likeness * (len(own) + len(theirs) - common)
    return alike


def _runs(ids: np.ndarray) -> np.ndarray:
    """A hash of each run of tokens: [max(1, T - 4)] uint64. A sample shorter than a run is one."""
    length = min(RUN, len(ids))
    wide = ids.astype(np.uint64)
    return _mixed([wide[at : len(ids) - length + at + 1] for at in range(length)])


def _mixed(columns: Iterable[np.ndarray]) -> np.ndarray:
    """One hash of the numbers at each place of some columns: the steps of splitmix64 (Steele and others 2014)."""
    found: Any = np.uint64(0x9E3779B97F4A7C15)
    for column in columns:
        found = (found ^ column) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found = found ^ (found >> np.uint64(31))
    assert isinstance(found, np.ndarray)
    return found


def _chunks(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Samples some at a time, of about CHUNK_TOKENS tokens together."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + CHUNK_TOKENS, side="right")))
        yield first, last
        first = last
