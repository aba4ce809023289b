"""Attention of packed rows written out in plain torch: what the kernels are compared with, and what stands in for them.

`explicit` has one mask over the whole row. The stand-ins have the names and the order of the arguments of the libraries
(torch 2.10, 2.11 and 2.13, FlashAttention 2 and 3), and mean what those mean by them.
"""

import torch


def explicit(query, key, value, packed, scale, window=None, softcap=None):
    """Softmax over an explicit T×T mask: [1, T, H, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    scores = (query @ key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask = explicit_mask(packed, window).to(query.device)
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def explicit_mask(packed, window=None):
    """Which place of the row [T, T] sees which, sequence by sequence and token by token."""
    total = sum(packed.lengths)
    mask = torch.zeros(total, total, dtype=torch.bool)
    first = 0
    for number, length in enumerate(packed.lengths):
        slices = packed.seen[number] if packed.seen else (slice(first, first + length),)
        places = [place for part in slices for place in range(part.start, part.stop)]
        for own in range(first, first + length):
            before = places[: places.index(own) + 1]
            mask[own, before if window is None else before[-window:]] = True
        first += length
    return mask


def by_sequence(q, k, v, cu_q, cu_k, scale, causal, window, softcap=0.0):
    """Attention of each sequence by itself, the last query beside the last key: [Tq, H, D]."""
    out = torch.empty_like(q)
    groups = q.shape[1] // k.shape[1]
    cu_q, cu_k = cu_q.tolist(), cu_k.tolist()
    assert len(cu_q) == len(cu_k) and cu_q[-1] == len(q) and cu_k[-1] == len(k) == len(v)
    for a, b, c, d in zip(cu_q, cu_q[1:], cu_k, cu_k[1:], strict=False):
        keys, values = (states[c:d].repeat_interleave(groups, 1) for states in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[a:b], keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        place, other = torch.arange(b - a)[:, None] + (d - c) - (b - a), torch.arange(d - c)
        left, right = window[0], 0 if causal else window[1]
        mask = torch.ones(b - a, d - c, dtype=torch.bool)
        if left >= 0:
            mask &= other >= place - left
        if right >= 0:
            mask &= other <= place + right
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        out[a:b] = torch.einsum("hqk,khd->qhd", weights, values)
    return out


def _check(q, k, cu_q, cu_k, max_q, max_k):
    assert q.dim() == 3 and cu_q.dtype == cu_k.dtype == torch.int32
    assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    assert isinstance(max_q, int) and isinstance(max_k, int)


def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    _check(query, key, cu_seq_q, cu_seq_k, max_q, max_k)
    return by_sequence(query, key, value, cu_seq_q, cu_seq_k, query.shape[-1] ** -0.5, is_causal, (-1, -1))


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    _check(query, key, cu_seq_q, cu_seq_k, max_q, max_k)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return by_sequence(query, key, value, cu_seq_q, cu_seq_k, scale, window_size == (-1, 0), window_size)


def torch_2_13(*args, enable_gqa=False, seqused_k=None, block_table=None, num_splits=None, **options):
    assert enable_gqa or args[0].shape[1] == args[1].shape[1]
    return torch_2_11(*args, **options)


def flash_2(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    _check(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return by_sequence(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, window_size, softcap)


def flash_3(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
    softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
    attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0,
    return_attn_probs=False,
):  # fmt: skip
    _check(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return by_sequence(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, window_size, softcap)


def flash_3_beta(*args, **options):
    """As the betas of FlashAttention 3 gave it: with the log-sum-exp."""
    return flash_3(*args, **options), None
