"""Attention over packed rows: each sequence attends to itself, causally, and no T×T mask is ever made.

A sequence that goes on from the beginning of another one sees that beginning too, whose keys and values stand once.

It is registered with transformers' `AttentionInterface`, so a model needs no patch: it runs with
`attn_implementation="tunesmith"` and gets the packed layout as a keyword argument, which transformers hands down to
every layer. A model whose attention cannot be replaced is given transformers' own packed mask, and the run says so.

No mask also means that a window or a chunk which a model writes only into its mask would be lost, unseen by any short
trial. So there is a second attention, `PROBE`, for one trial call: it computes nothing, but compares the mask that a
layer is given with what packed attention would do there, at places near and far.

Letters: T tokens of the row, S sequences, H query heads, K key and value heads, D head size, P pairs of places.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.engine import cuda_attention
from tunesmith.engine.device import compute_dtype
from tunesmith.engine.elementwise import PLAIN, Elementwise
from tunesmith.engine.grouped_attention import Reach, Sequences, attention
from tunesmith.types import Batch

NAME = "tunesmith"
PROBE = "tunesmith_probe"
FAR = 1 << 30  # a place beyond any window
PAIRS = 8 * 8


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the sequences of a packed row lie. Made once a batch: its lengths wait for the device."""

    offsets: torch.Tensor  # [S+1] int32
    lengths: tuple[int, ...]  # [S]
    longest: int  # keys that a sequence sees at most
    seen: Sequences  # [S] what each sees of the row, itself last
    shares: bool  # whether one sees more than itself
    ops: Elementwise = field(default=PLAIN, repr=False)
    before: "Callable[..., tuple[torch.Tensor, torch.Tensor]] | None" = (
        None  # puts a layer's learned keys and values in
    )

    @classmethod
    def of(cls, batch: Batch, ops: Elementwise = PLAIN) -> "Layout":
        """The layout of a batch."""
        lengths = tuple(batch.offsets.diff().tolist() if batch.lengths is None else batch.lengths)
        bounds = [0, *accumulate(lengths)]
        if batch.prefix is None:
            alone = tuple((slice(first, last),) for first, last in pairwise(bounds))
            return cls(batch.offsets, lengths, batch.longest, alone, False, ops)
        seen: list[tuple[slice, ...]] = []
        for number, (parent, tokens) in enumerate(batch.prefix.tolist()):
            own = slice(bounds[number], bounds[number + 1])
            seen.append((*(_first(seen[parent], tokens) if tokens else ()), own))
        return cls(batch.offsets, lengths, max(map(_tokens, seen)), tuple(seen), True, ops)


def _tokens(slices: tuple[slice, ...]) -> int:
    return sum(part.stop - part.start for part in slices)


def _first(slices: tuple[slice, ...], tokens: int) -> Iterator[slice]:
    """The slices that hold the first tokens of some slices."""
    for part in slices:
        taken = min(tokens, part.stop - part.start)
        if taken:
            yield slice(part.start, part.start + taken)
        tokens -= taken


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, K, T, D]
    value: torch.Tensor,  # [1, K, T, D]
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention in each sequence of a packed row: [1, T, H, D].

    Raises:
        NotImplementedError: the layer asks for what this attention does not do (sinks, other masks, dropout with a soft
            cap); the probe at start sees it and the run falls back to transformers' own.
    """
    unknown = [name for name in ("s_aux", "position_bias", "cache") if kwargs.get(name) is not None]
    unknown += ["dropout with a soft cap"] if softcap is not None and dropout else []
    if packed is None:
        raise NotImplementedError("a layer does not tell its attention where sequences lie")
    if unknown or attention_mask is not None or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"a layer's attention has {', '.join(unknown) or 'another mask'}")
    if packed.before is not None:
        key, value = packed.before(module, key, value)
    # Under autocast, rotary embeddings promote queries and keys to float32, and values stay in half precision.
    dtype = compute_dtype(value)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    window = sliding_window if sliding_window is not None and sliding_window < packed.longest else None
    if dropout:
        return _by_sequence(query, key, value, scaling, window, packed, dropout), None
    if query.is_cuda:
        capped, bounded = softcap is not None, window is not None
        name = cuda_attention.choose(dtype, query.shape[-1], value.shape[-1], capped, bounded)
        return cuda_attention.attend(name, query, key, value, scaling, window, softcap, packed), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention(query, key, value, packed.seen, Reach(scale, window, softcap), packed.ops), None


def _by_sequence(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    packed: Layout,
    dropout: float,
) -> torch.Tensor:
    """One SDPA call a sequence, which knows dropout; grouped heads without copies of keys and values."""
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    keys, values = (_by_slices(states, packed) for states in (key, value))
    for q, k, v in zip(query.split(packed.lengths, dim=2), keys, values, strict=True):
        plain = q.shape[2] == k.shape[2] and (window is None or window >= k.shape[2])
        mask = None if plain else _band(q.shape[2], k.shape[2], window, q.device)
        outputs.append(
            scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            ).transpose(1, 2)  # [1, t, H, D]
        )
    return torch.cat(outputs, dim=1)


def _by_slices(states: torch.Tensor, packed: Layout) -> Iterable[torch.Tensor]:
    """The keys or values [1, K, T, D] that each sequence sees."""
    parts = ([states[:, :, part] for part in slices] for slices in packed.seen)
    return (found[0] if len(found) == 1 else torch.cat(found, dim=2) for found in parts)


def _band(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which keys each query sees, when the queries are the last places of a sequence: [queries, keys] bool."""
    place = torch.arange(keys, device=device)
    return _seen(place[keys - queries :, None], place[None, :], window)


def _seen(query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor:
    """Whether the token at place `query` sees the one at place `key` of its sequence: bool of their common shape."""
    distance = query - key
    return (distance >= 0) & (distance < (2 * FAR if window is None else window))


def pairs_of_mask(
    mask_function: Callable[..., torch.Tensor],
    local_size: int | None = None,
    allow_is_causal_skip: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor:
    """What a model's own mask says of pairs of places around its window or chunk: query, key, seen [1, 1, 3, P].

    Raises:
        NotImplementedError: the mask is more than a causal one with a window or chunks.
    """
    if not allow_is_causal_skip:
        raise NotImplementedError("the model makes a mask of its own")
    size = local_size or 1
    place = torch.tensor([0, 1, 2, size - 1, size, size + 1, 2 * size, FAR], device=device)
    query, key = place.repeat_interleave(len(place)), place.repeat(len(place))
    first = torch.zeros_like(query)  # of the batch, and of the heads
    seen = mask_function(first, first, query, key)
    return torch.stack([query, key, seen.long()])[None, None]


def compare_mask(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, K, T, D]
    value: torch.Tensor,  # [1, K, T, D]
    attention_mask: torch.Tensor | None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """No attention, only zeros [1, T, H, D]: checks that packed attention sees what the layer's mask lets it see.

    Raises:
        NotImplementedError: it does not, or the layer has no mask of `pairs_of_mask`.
    """
    if attention_mask is None or attention_mask.shape != (1, 1, 3, PAIRS):
        raise NotImplementedError("a layer is not given the model's mask")
    asking, asked, seen = attention_mask[0, 0]
    if not torch.equal(_seen(asking, asked, sliding_window), seen.bool()):
        raise NotImplementedError("a layer's mask has a window or chunks that its attention is not told of")
    return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


def register() -> None:
    """Make both attentions known to transformers; packed attention has no mask function, so no mask is built."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionInterface.register(PROBE, compare_mask)
    AttentionMaskInterface.register(PROBE, pairs_of_mask)
