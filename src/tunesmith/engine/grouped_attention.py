"""Causal attention of one sequence after another by matrix products, for devices without a variable-length kernel.

Query heads that share a key head are rows of one product, so keys and values are never copied for them. Scores exist
for a block of queries at a time, in float32 as in the models' own attention. The shares that come of them are kept for
the backward pass where a block sees few keys, and made again where it sees more, so that what is kept beside queries,
keys and values grows with the tokens of a row alone. It is measured against torch's SDPA in benchmarks/attention.py.

Letters: T tokens of the row, H query heads, K key heads, G = H / K query heads of a group, D head size, Q queries of a
block, S keys that a block sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.engine.elementwise import Elementwise

BLOCK_SCORES = 1 << 20  # scores that exist at once: 4 MB in float32
SHORTEST_BLOCK, LONGEST_BLOCK = 32, 128  # queries
KEPT_KEYS = 256  # of a block, up to which its shares are kept: half a kilobyte a query head and token in bfloat16


@dataclass(frozen=True)
class Reach:
    """What a layer's attention does besides softmax: how far back a query sees, and a cap on scores."""

    scale: float
    window: int | None = None
    cap: float | None = None


Sequences = tuple[tuple[slice, ...], ...]  # of each sequence the slices of the row that it sees, itself last


def attention(
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, K, T, D]
    value: torch.Tensor,  # [1, K, T, D]
    sequences: Sequences,
    reach: Reach,
    ops: Elementwise,
) -> torch.Tensor:
    """Attention of each sequence to what it sees, causally: [1, T, H, D]."""
    found: Any = _Attention.apply(query, key, value, sequences, reach, ops)
    return found


def _blocks(sequences: Sequences, heads: int, window: int | None) -> Iterator[tuple[slice, list[slice], slice]]:
    """Blocks of queries of every sequence: where they lie, the row's slices that are its keys, and which keys of them.

    The queries are the last places of the keys that are named.
    """
    for slices in sequences:
        own = slices[-1]
        before = sum(part.stop - part.start for part in slices[:-1])
        length = own.stop - own.start
        size = min(LONGEST_BLOCK, max(SHORTEST_BLOCK, BLOCK_SCORES // (heads * (before + length))))
        for first in range(0, length, size):
            last = min(first + size, length)
            reached = 0 if window is None else max(0, before + first - window + 1)
            yield slice(own.start + first, own.start + last), list(slices), slice(reached, before + last)


def _seen(states: torch.Tensor, slices: list[slice], keys: slice) -> torch.Tensor:
    """The keys or values [K, S, D] that a block sees, of those of the row [K, T, D]."""
    joined = states[:, slices[0]] if len(slices) == 1 else torch.cat([states[:, part] for part in slices], dim=1)
    return joined[:, keys]


def _add_back(total: torch.Tensor, slices: list[slice], keys: slice, part: torch.Tensor) -> None:
    """Add a block's gradient [K, S, D] to the row's [K, T, D], where `_seen` took its keys from."""
    at = keys.start  # place among the keys of all slices
    before = 0
    for one in slices:
        length = one.stop - one.start
        stop = min(before + length, keys.stop)
        if stop > at:
            total[:, one.start + at - before : one.start + stop - before] += part[
                :, at - keys.start : stop - keys.start
            ]
            at = stop
        before += length


class _Attention(torch.autograd.Function):
    """Keeps queries, keys, values and the shares of short blocks; those of others are made once more."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sequences: Sequences,
        reach: Reach,
        ops: Elementwise,
    ) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        ctx.sequences, ctx.reach, ctx.ops = sequences, reach, ops
        heads, groups = query.shape[1], query.shape[1] // key.shape[1]
        asking, keys = ops.grouped(query[0], groups, reach.scale), key[0].float()  # [K, T, G, D], [K, T, D]
        out = query.new_empty(query.shape[2], key.shape[1], groups, value.shape[3])  # [T, K, G, D]
        for block, slices, places in _blocks(sequences, heads, reach.window):
            scores = asking[:, block].flatten(1, 2) @ _seen(keys, slices, places).mT  # [K, Q G, S], in float32
            scores = scores.unflatten(1, (-1, groups))
            shares = _shares(scores, reach).to(query.dtype)
            if shares.shape[-1] <= KEPT_KEYS and reach.cap is None:
                kept.append(shares)
            found = shares.flatten(1, 2) @ _seen(value[0], slices, places)  # [K, Q G, D]
            out[block] = found.unflatten(1, (-1, groups)).transpose(0, 1)
        ctx.save_for_backward(query, key, value, *kept)
        return out.flatten(1, 2)[None]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, *kept = ctx.saved_tensors
        reach: Reach = ctx.reach
        heads, groups = query.shape[1], query.shape[1] // key.shape[1]
        asking, keys = ctx.ops.grouped(query[0], groups, reach.scale), key[0].float()
        given = gradients[0][0].transpose(0, 1).unflatten(0, (-1, groups)).transpose(1, 2)  # [K, T, G, D]
        by_query = query.new_empty(query.shape[2], key.shape[1], groups, query.shape[3])  # [T, K, G, D]
        by_key, by_value = (torch.zeros_like(states[0], dtype=torch.float32) for states in (key, value))
        for block, slices, places in _blocks(ctx.sequences, heads, reach.window):
            wanted = given[:, block].flatten(1, 2)  # [K, Q G, D]
            slope = None
            if places.stop - places.start <= KEPT_KEYS and reach.cap is None:
                shares = kept.pop(0)
            else:
                scores = (asking[:, block].flatten(1, 2) @ _seen(keys, slices, places).mT).unflatten(1, (-1, groups))
                slope = None if reach.cap is None else 1 - (scores / reach.cap).tanh().square()
                shares = _shares(scores, reach)
            by_share = (wanted @ _seen(value[0], slices, places).mT).view_as(shares)
            shares, by_score = ctx.ops.softmax_pull(shares, by_share)
            by_score = (by_score if slope is None else by_score.mul_(slope)).flatten(1, 2)
            _add_back(by_value, slices, places, shares.flatten(1, 2).mT @ wanted)
            _add_back(by_key, slices, places, by_score.mT @ asking[:, block].flatten(1, 2).to(key.dtype))
            found = (by_score @ _seen(key[0], slices, places)) * reach.scale  # [K, Q G, D]
            by_query[block] = found.unflatten(1, (-1, groups)).transpose(0, 1)
        return (
            by_query.flatten(1, 2).transpose(0, 1)[None],
            by_key.to(key.dtype)[None],
            by_value.to(value.dtype)[None],
            None,
            None,
            None,
        )


def _shares(scores: torch.Tensor, reach: Reach) -> torch.Tensor:
    """Softmax of scores [K, Q, G, S], which are used up, over the keys that each query sees; the queries are last."""
    queries, keys = scores.shape[1], scores.shape[3]
    if reach.cap is not None:
        scores.div_(reach.cap).tanh_().mul_(reach.cap)
    unseen = scores.new_full((queries, keys), -torch.inf).triu_(keys - queries + 1)
    if reach.window is not None:
        unseen += torch.full_like(unseen, -torch.inf).tril_(keys - queries - reach.window)
    return scores.add_(unseen[:, None]).softmax(-1)
