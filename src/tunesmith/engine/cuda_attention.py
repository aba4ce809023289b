"""Packed attention on CUDA: which kernel does it, and how each of them is asked.

| name | kernel | what only it does |
|---|---|---|
| `flash3` | FlashAttention 3, where installed and the device is a Hopper | the fastest there; soft caps |
| `varlen` | torch's variable-length attention, which is FlashAttention 2 | needs nothing but torch |
| `flash2` | FlashAttention 2, where installed | soft caps; windows with torch 2.10 |
| `flex` | FlexAttention, compiled for the model | everything else: float32, odd head sizes, older devices |

The first three read the row as it lies, sequence by sequence. Where a sequence goes on from the beginning of another
one, they are given its keys and values once more behind each other; FlexAttention is given a mask by token instead, of
which it skips the blocks in which nothing is seen. Neither makes a T×T mask.

What depends only on where sequences lie is made for the first layer of a batch and kept for the others.

Letters: T tokens of the row, S sequences, H query heads, K key and value heads, D head size, B blocks of the row.
"""

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from tunesmith.engine import compat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunesmith.engine.attention import Layout

KERNELS = {
    "flash3": "FlashAttention 3",
    "varlen": "torch's variable-length attention",
    "flash2": "FlashAttention 2",
    "flex": "FlexAttention, which is compiled in the first steps",
}
LARGEST_HEAD = 256  # of FlashAttention
BLOCK = 128  # tokens of a block of FlexAttention's mask
FAR = 1 << 30  # tokens, more than any row has: one number for all rows, so that none is compiled anew
KEPT = 4  # layouts with a window each: a model has one or two, and a step may have an evaluation between


@lru_cache
def choose(dtype: torch.dtype, head_size: int, value_size: int, softcap: bool, window: bool) -> str:
    """The name of the fastest kernel that is here and does this, on the present CUDA device.

    `softcap` and `window`: whether the layer has one.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

    generation, _ = torch.cuda.get_device_capability()
    half = dtype in (torch.bfloat16, torch.float16)
    fits = head_size == value_size <= LARGEST_HEAD and head_size % 8 == 0
    if half and fits and generation >= 8:
        if generation == 9 and is_flash_attn_3_available():
            return "flash3"
        if not softcap and (not window or compat.varlen_has_windows()):
            return "varlen"
        if is_flash_attn_2_available():
            return "flash2"
    return "flex"


def said(*names: str) -> str:
    """The line that a run says at its start."""
    return f"attention: {', '.join(KERNELS[name] for name in names)}"


def of_model(config: Any, dtype: torch.dtype) -> tuple[str, ...]:
    """The kernels of a model's layers: one, or two where some have a window that only another kernel does."""
    text = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    capped = getattr(text, "attn_logit_softcapping", None) is not None
    windows = (False, True) if getattr(text, "sliding_window", None) else (False,)
    found = (choose(dtype, size, getattr(text, "v_head_dim", None) or size, capped, window) for window in windows)
    return tuple(dict.fromkeys(found))


def attend(
    name: str,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, K, T, D]
    value: torch.Tensor,  # [1, K, T, D]
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    packed: "Layout",
) -> torch.Tensor:
    """Causal attention in each sequence of a packed row by the kernel of this name: [1, T, H, D].

    `window` is how many tokens a token sees, itself included; the cap is `softcap * tanh(score / softcap)` of scores
    that are scaled already; `scaling` None is 1 / sqrt(D).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if name == "flex":
        return _flex(query, key, value, scale, window, softcap, packed)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [T, H or K, D]
    rows = _rows(packed)
    if rows.seen is not None:
        k, v = k.index_select(0, rows.seen), v.index_select(0, rows.seen)
    if name == "varlen":
        assert softcap is None, "choose gives a layer with a soft cap to another kernel"
        return compat.varlen(q, k, v, *rows.bounds, scale, window)[None]
    return _flash(name)(
        q,
        k,
        v,
        *rows.bounds,
        softmax_scale=scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
        softcap=softcap or 0.0,
    )[None]


@cache
def _flash(name: str) -> "Callable[..., torch.Tensor]":
    """FlashAttention's function for packed rows. Its last query sees the last key: queries may be fewer than keys."""
    if name == "flash2":
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func
    from flash_attn_interface import flash_attn_varlen_func as third

    def output_alone(*args: Any, **options: Any) -> torch.Tensor:
        out = third(*args, **options)
        return out[0] if isinstance(out, tuple) else out  # its betas give the log-sum-exp too, whatever is asked

    return output_alone


class _Rows(NamedTuple):
    """What a kernel for variable lengths is told of a packed row."""

    seen: torch.Tensor | None  # the places of the keys that each sequence sees, sequence after sequence; None: all once
    bounds: tuple[torch.Tensor, torch.Tensor, int, int]  # offsets of queries and of keys [S+1], the most of each


def _shared(packed: "Layout") -> "Sequence[tuple[slice, ...]]":
    """What each sequence sees of the row, itself last; nothing where each sees itself alone."""
    seen = packed.seen or ()
    return seen if any(len(slices) > 1 for slices in seen) else ()


@lru_cache(KEPT)
def _rows(packed: "Layout") -> _Rows:
    most_queries = max(packed.lengths)
    if not (shared := _shared(packed)):
        return _Rows(None, (packed.offsets, packed.offsets, most_queries, most_queries))
    device = packed.offsets.device
    seen = torch.cat([torch.arange(part.start, part.stop) for slices in shared for part in slices])
    sizes = torch.tensor([0, *(sum(part.stop - part.start for part in slices) for slices in shared)])
    keys = sizes.cumsum(0).int().to(device)
    return _Rows(seen.to(device), (packed.offsets, keys, most_queries, packed.longest))


def _flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    packed: "Layout",
) -> torch.Tensor:
    run = _compiled() if query.is_cuda else flex_attention  # on a CPU as it is, for tests: it makes T×T scores there
    out = run(
        query,
        key,
        value,
        score_mod=_cap(softcap),
        block_mask=block_mask(packed, window),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


@cache  # one function for one cap: a new one would be compiled again
def _cap(softcap: float | None) -> "Callable[..., torch.Tensor] | None":
    if softcap is None:
        return None

    def cap(score: torch.Tensor, batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


@lru_cache(KEPT)
def block_mask(packed: "Layout", window: int | None) -> BlockMask:
    """FlexAttention's mask of a packed row, and which blocks of it hold something and which are seen in full.

    Counted by stripes of one block of queries [BLOCK, T], so that the memory grows with T and not with its square.
    """
    seen, tokens = sees(packed, window), sum(packed.lengths)
    place = torch.arange(tokens, device=packed.offsets.device)
    blocks = -(-tokens // BLOCK)
    counts = []
    for stripe in place.split(BLOCK):
        mask = torch.zeros(BLOCK, blocks * BLOCK, dtype=torch.bool, device=place.device)
        mask[: len(stripe), :tokens] = seen(None, None, stripe[:, None], place)
        counts.append(mask.view(BLOCK, blocks, BLOCK).sum((0, 2)))
    count = torch.stack(counts)[None, None]  # [1, 1, B, B] pairs of a query and a key that it sees
    full = count == BLOCK * BLOCK
    return BlockMask.from_kv_blocks(
        *_listed((count > 0) & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=seen,
        seq_lengths=(tokens, tokens),
    )


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks of each stripe are true, and their numbers before those of the others."""
    return blocks.sum(-1, dtype=torch.int32), blocks.int().argsort(dim=-1, descending=True, stable=True).int()


def sees(packed: "Layout", window: int | None) -> "Callable[..., torch.Tensor]":
    """Whether the token at one place of a packed row sees the one at another, as FlexAttention asks.

    A token's number in its sequence counts on from the beginning that it shares, so that one comparison of numbers is
    enough for order and window; which tokens of the row belong to a sequence is a table [S, T] only where some share.
    """
    device = packed.offsets.device
    lengths = torch.tensor(packed.lengths)
    starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)  # [T]
    number = torch.arange(len(starts)) - starts  # [T]
    reach = FAR if window is None else window
    if not (shared := _shared(packed)):
        number = number.to(device)

        def own(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            behind = number[query] - number[key]
            return (sequence[query] == sequence[key]) & (behind >= 0) & (behind < reach)

        return own

    table = torch.zeros(len(lengths), len(starts), dtype=torch.bool)
    before = torch.zeros_like(lengths)
    for row, slices in enumerate(shared):
        for part in slices:
            table[row, part] = True
        before[row] = sum(part.stop - part.start for part in slices[:-1])
    number, table = (number + torch.repeat_interleave(before, lengths)).to(device), table.to(device)

    def with_shared(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        behind = number[query] - number[key]
        return table[sequence[query], key] & (behind >= 0) & (behind < reach)

    return with_shared
