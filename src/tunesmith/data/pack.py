"""Which samples stand together in a row: first-fit decreasing in windows of a shuffled stream."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FEW_WINDOWS = 4  # up to so many, one after the other is faster than side by side
MOST_WINDOWS = 1024  # side by side: what their free room takes in memory stays small


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows as pieces of samples. Row r is pieces `row_offsets[r]` to `row_offsets[r + 1]`.

    `pieces` is [P, 3] int32: the sample, and its first and one-past-last token in the row.
    """

    pieces: np.ndarray
    row_offsets: np.ndarray

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.row_offsets) - 1

    def row(self, index: int) -> np.ndarray:
        """The pieces of a row: [p, 3]."""
        return self.pieces[self.row_offsets[index] : self.row_offsets[index + 1]]

    def first(self, rows: int) -> "Plan":
        """The first rows of the plan."""
        return Plan(self.pieces[: self.row_offsets[rows]], self.row_offsets[: rows + 1])

    @property
    def tokens(self) -> int:
        """The tokens in the rows."""
        return int((self.pieces[:, 2] - self.pieces[:, 1]).sum())

    def fill(self, row_tokens: int) -> float:
        """Tokens in the rows over the tokens that they could hold."""
        return self.tokens / (row_tokens * max(1, len(self)))


def plan_epoch(
    lengths: np.ndarray, row_tokens: int, window: int, order: np.ndarray, seed: tuple[int, ...] | None
) -> Plan:
    """Pack whole samples, taken in `order`, a window at a time. A sample may come several times.

    `seed` shuffles the rows of a window (packing puts long samples first); None orders them by their first
    samples.
    """
    sizes = lengths[order]
    samples, counts = [order[:0]], [np.zeros(0, np.int64)]
    for number, row_of in enumerate(_rows_of_windows(sizes, row_tokens, window)):
        start = number * window
        rows = int(row_of.max()) + 1
        if seed is None:
            _, first = np.unique(row_of, return_index=True)  # every row has a sample
            turn = np.argsort(first)
        else:
            turn = np.random.default_rng([*seed, start]).permutation(rows)
        place = np.empty(rows, np.int64)
        place[turn] = np.arange(rows)
        samples.append(order[start : start + window][np.argsort(_narrow(place[row_of], rows), kind="stable")])
        counts.append(np.bincount(place[row_of], minlength=rows))
    laid = np.concatenate(samples)
    pieces = np.zeros((len(laid), 3), np.int32)
    pieces[:, 0], pieces[:, 2] = laid, lengths[laid]
    return Plan(pieces, offsets_of(np.concatenate(counts)))


def plan_padded(
    sides: np.ndarray, row_tokens: int, window: int, order: np.ndarray, seed: tuple[int, ...] | None
) -> Plan:
    """Rows of samples whose two sequences [M, 2] are padded, each to its longest in the row: those of like length.

    With its padding a row takes at most `row_tokens` places. Windows, order and `seed` are as in `plan_epoch`.
    """
    rows: list[np.ndarray] = []
    for start in range(0, len(order), window):
        some = order[start : start + window]
        found = _alike(sides[some], row_tokens)
        if seed is None:
            found.sort(key=lambda row: row.min())
        else:
            found = [found[row] for row in np.random.default_rng([*seed, start]).permutation(len(found))]
        rows += [some[row] for row in found]
    laid = np.concatenate(rows)
    pieces = np.zeros((len(laid), 3), np.int32)
    pieces[:, 0], pieces[:, 2] = laid, sides[laid].sum(axis=1)
    return Plan(pieces, offsets_of(np.asarray([len(row) for row in rows])))


def _alike(sides: np.ndarray, row_tokens: int) -> list[np.ndarray]:
    """Samples in rows: by the octave of their shorter side, then by their longer one, where padding is dear."""
    shorter, longer = np.argsort(sides.sum(axis=0), kind="stable")
    octave = np.floor(np.log2(sides[:, shorter]))
    found: list[np.ndarray] = []
    row: list[int] = []
    longest = np.zeros(2, np.int64)
    for item in np.lexsort((-sides[:, longer], -octave)).tolist():
        together = np.maximum(longest, sides[item])
        if row and (len(row) + 1) * together.sum() > row_tokens:
            found.append(np.asarray(row))
            row, together = [], sides[item]
        row.append(item)
        longest = together
    return [*found, np.asarray(row)] if row else found


def padded_places(plan: Plan, sides: np.ndarray) -> int:
    """The places that the rows of a plan take with their padding, for sides [M, 2]."""
    if not len(plan):
        return 0
    longest = np.maximum.reduceat(sides[plan.pieces[:, 0]], plan.row_offsets[:-1])  # [R, 2]
    return int((longest.sum(axis=1) * np.diff(plan.row_offsets)).sum())


def plan_documents(lengths: np.ndarray, row_tokens: int, order: np.ndarray) -> Plan:
    """Lay documents end to end, in `order`, and cut every `row_tokens` tokens: only the last row has room.

    A document's last token has no next to ask for, so a row that holds no more is left out: there is nothing to learn.
    """
    bounds = offsets_of(lengths[order])  # where the documents begin and end
    total = int(bounds[-1])
    cuts = np.sort(np.concatenate([bounds, np.arange(0, total, row_tokens)]), kind="stable")  # two sorted runs: merged
    cuts = np.concatenate([cuts[:1], cuts[1:][np.diff(cuts) > 0]])
    document = np.searchsorted(bounds, cuts[:-1], side="right") - 1
    begun = bounds[document]
    pieces = np.stack([order[document], cuts[:-1] - begun, cuts[1:] - begun], axis=1).astype(np.int32)
    rows = -(-total // row_tokens)
    return _asking(Plan(pieces, np.searchsorted(cuts[:-1] // row_tokens, np.arange(rows + 1))), lengths)


def _asking(plan: Plan, lengths: np.ndarray) -> Plan:
    """The rows of a plan in which a position has a next token."""
    sample, first, last = plan.pieces.T
    asked = offsets_of(np.minimum(last, lengths[sample] - 1) - first)[plan.row_offsets]
    kept, sizes = np.diff(asked) > 0, np.diff(plan.row_offsets)
    return Plan(plan.pieces[np.repeat(kept, sizes)], offsets_of(sizes[kept]))


def offsets_of(sizes: np.ndarray) -> np.ndarray:
    """Where each of some sizes [K] begins when they are laid end to end, and where the last one ends: [K+1]."""
    return np.concatenate([[0], np.cumsum(sizes)])


def _rows_of_windows(sizes: np.ndarray, capacity: int, window: int) -> Iterator[np.ndarray]:
    """First-fit decreasing of each window of samples: the number of the row of each."""
    assert sizes.max(initial=0) <= capacity, "overlong samples are dealt with before packing"
    for start in range(0, len(sizes), window * MOST_WINDOWS):
        some = sizes[start : start + window * MOST_WINDOWS]
        if len(some) > FEW_WINDOWS * window:
            yield from _side_by_side(some, capacity, window)
        else:
            yield from (first_fit_decreasing(some[at : at + window], capacity) for at in range(0, len(some), window))


def _narrow(numbers: np.ndarray, most: int) -> np.ndarray:
    """Numbers from 0 to `most` in two bytes where they fit: they are sorted in linear time then."""
    return numbers.astype(np.uint16) if most < 2**16 else numbers


def _side_by_side(sizes: np.ndarray, capacity: int, window: int) -> Iterator[np.ndarray]:
    """The same, a step in all windows at once: the first samples of all, then the second ones, and so on.

    The rows' free room lies in blocks, each with its maximum: W windows, B blocks of B rows.
    """
    windows = -(-len(sizes) // window)
    padded = np.zeros((windows, window), np.int32)  # pads of no tokens lie in the first row
    padded.ravel()[: len(sizes)] = sizes
    order = np.argsort(_narrow(capacity - padded, capacity), axis=1, kind="stable")
    rows = min(window, 2 * int(padded.sum(axis=1, dtype=np.int64).max()) // capacity + 1)  # one at most is half empty
    side = math.isqrt(rows - 1) + 1
    room = np.full((windows, side, side), capacity, np.int32)  # [W, B, B]
    most = np.full((windows, side), capacity, np.int32)  # [W, B]
    found = np.empty((windows, window), np.int64)
    each = np.arange(windows)
    for item in order.T:  # [W]
        need = padded[each, item]
        block = (most >= need[:, None]).argmax(axis=1)
        inside = room[each, block]  # [W, B], a copy
        row = (inside >= need[:, None]).argmax(axis=1)
        inside[each, row] -= need
        room[each, block] = inside
        most[each, block] = inside.max(axis=1)
        found[each, item] = block * side + row
    for number, row_of in enumerate(found):
        yield row_of[: len(sizes) - number * window]


def first_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Put each item, longest first, into the first row with room: the number of the row of each.

    Equal lengths keep their order. The rows' free room lies in a tree of maxima: one is found in O(log n).
    """
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    room = [capacity] * (2 * leaves)  # room[1] is the root; leaf i is row i
    found = np.empty(len(lengths), np.int64)
    for item in np.argsort(-lengths, kind="stable"):
        need = int(lengths[item])
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= need else 2 * node + 1
        found[item] = node - leaves
        room[node] -= need
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return found
