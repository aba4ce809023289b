"""Which samples stand together in a row: first-fit decreasing in windows of a shuffled stream."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows as pieces of samples. Row r is pieces `row_offsets[r]` to `row_offsets[r + 1]`.

    `pieces` is [P, 3] int64: the sample, and its first and one-past-last token in the row.
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

    def fill(self, row_tokens: int) -> float:
        """Tokens in the rows over the tokens that they could hold."""
        used = int((self.pieces[:, 2] - self.pieces[:, 1]).sum())
        return used / (row_tokens * max(1, len(self)))


def plan_epoch(
    lengths: np.ndarray, row_tokens: int, window: int, order: np.ndarray, seed: tuple[int, ...] | None
) -> Plan:
    """Pack whole samples, taken in `order`, a window at a time.

    `seed` shuffles the rows of a window (packing puts long samples first); None orders them by their first
    samples.
    """
    rows: list[list[int]] = []
    for start in range(0, len(order), window):
        members = order[start : start + window]
        packed = [sorted(row) for row in first_fit_decreasing(lengths[members], row_tokens)]
        turn = np.random.default_rng([*seed, start]).permutation(len(packed)) if seed is not None else None
        packed = sorted(packed) if turn is None else [packed[i] for i in turn]
        rows += [[int(members[i]) for i in row] for row in packed]
    samples = np.asarray([sample for row in rows for sample in row], np.int64)
    pieces = np.stack([samples, np.zeros_like(samples), lengths[samples]], axis=1)
    return Plan(pieces, np.cumsum([0, *map(len, rows)]))


def plan_documents(lengths: np.ndarray, row_tokens: int, order: np.ndarray) -> Plan:
    """Lay documents end to end, in `order`, and cut every `row_tokens` tokens: only the last row has room.

    A document's last token has no next to ask for, so a row that holds no more is left out: there is nothing to learn.
    """
    pieces: list[tuple[int, int, int]] = []
    row_offsets = [0]
    room = row_tokens
    for sample in order:
        start, length = 0, int(lengths[sample])
        while start < length:
            take = min(room, length - start)
            pieces.append((int(sample), start, start + take))
            start, room = start + take, room - take
            if room == 0:
                row_offsets.append(len(pieces))
                room = row_tokens
    if row_offsets[-1] != len(pieces):
        row_offsets.append(len(pieces))
    return _asking(Plan(np.asarray(pieces, np.int64).reshape(-1, 3), np.asarray(row_offsets)), lengths)


def _asking(plan: Plan, lengths: np.ndarray) -> Plan:
    """The rows of a plan in which a position has a next token."""
    sample, first, last = plan.pieces.T
    asked = np.cumsum([0, *(np.minimum(last, lengths[sample] - 1) - first)])[plan.row_offsets]
    kept, sizes = np.diff(asked) > 0, np.diff(plan.row_offsets)
    return Plan(plan.pieces[np.repeat(kept, sizes)], np.cumsum([0, *sizes[kept]]))


def first_fit_decreasing(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Put each item, longest first, into the first row with room; rows as item numbers.

    Equal lengths keep their order. The rows' free room lies in a tree of maxima: one is found in O(log n).
    """
    assert lengths.max(initial=0) <= capacity, "overlong samples are dealt with before packing"
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    room = [capacity] * (2 * leaves)  # room[1] is the root; leaf i is row i
    rows: list[list[int]] = []
    for item in np.argsort(-lengths, kind="stable"):
        need = int(lengths[item])
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= need else 2 * node + 1
        if node - leaves == len(rows):
            rows.append([])
        rows[node - leaves].append(int(item))
        room[node] -= need
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows
