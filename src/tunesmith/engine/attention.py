"""Attention over packed rows: each sequence attends to itself, causally, and no T×T mask is ever made.

It is registered with transformers' `AttentionInterface`, so a model needs no patch: it runs with
`attn_implementation="tunesmith"` and gets the packed layout as keyword arguments, which transformers hands down to
every layer. A model whose attention cannot be replaced is given transformers' own packed mask, and the run says so.

Letters: T tokens of the row, S sequences, H query heads, K key and value heads, D head size.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "tunesmith"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, K, T, D]
    value: torch.Tensor,  # [1, K, T, D]
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed_offsets: torch.Tensor | None = None,  # [S+1] int32
    packed_longest: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention in each sequence of a packed row: [1, T, H, D].

    Raises:
        NotImplementedError: the layer asks for what this attention does not do (soft caps, sinks, other masks); the
            probe at start sees it and the run falls back to transformers' own.
    """
    unknown = [name for name in ("softcap", "s_aux", "position_bias", "cache") if kwargs.get(name) is not None]
    if unknown or attention_mask is not None or packed_offsets is None or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"packed attention with {unknown or 'another mask'}")
    window = sliding_window if sliding_window is not None and sliding_window < packed_longest else None
    if query.is_cuda and dropout == 0.0 and query.dtype in (torch.bfloat16, torch.float16):
        return _varlen(query, key, value, scaling, window, packed_offsets, packed_longest), None
    return _by_sequence(query, key, value, scaling, window, packed_offsets, dropout), None


def _by_sequence(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    offsets: torch.Tensor,
    dropout: float,
) -> torch.Tensor:
    """One SDPA call a sequence, grouped heads without copies of keys and values."""
    lengths = offsets.diff().tolist()
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for q, k, v in zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True):
        mask = _band(q.shape[2], window, q.device) if window is not None and window < q.shape[2] else None
        outputs.append(
            scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            ).transpose(1, 2)  # [1, t, H, D]
        )
    return torch.cat(outputs, dim=1)


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Which keys each query of a sequence sees under a sliding window: [t, t] bool."""
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]
    return (distance >= 0) & (distance < window)


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    offsets: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """The variable-length kernel of torch (CUDA, half precision), which reads the packed row as it lies."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [T, H or K, D]
    reach = (window - 1 if window is not None else -1, 0)
    grouped = q.shape[1] != k.shape[1]
    out = varlen_attn(q, k, v, offsets, offsets, longest, longest, scale=scaling, window_size=reach, enable_gqa=grouped)
    assert isinstance(out, torch.Tensor)
    return out[None]


def layout(offsets: torch.Tensor, longest: int) -> dict[str, Any]:
    """The keyword arguments that tell every attention layer where the sequences of a row lie."""
    return {"packed_offsets": offsets, "packed_longest": longest}


def register() -> None:
    """Make the attention known to transformers under its name; without a mask function, no mask is built."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
