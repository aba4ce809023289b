"""Packed attention equals attention of each sequence alone, and sees nothing of its neighbours."""

from dataclasses import replace

import pytest
import torch

from fixtures_models import tiny_model
from numerics.packed import alone, gradients, packed_batch
from tunesmith.engine import attention, kernels
from tunesmith.engine.scores import Scorer


def reference(query, key, value, lengths, scaling, window):
    """Softmax over an explicit T×T mask in float64: [1, T, H, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.double().repeat_interleave(groups, 1) for states in (key, value))
    place = torch.arange(sum(lengths))
    seq = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = (place[:, None] >= place) & (seq[:, None] == seq)
    if window is not None:
        seen &= place[:, None] - place < window
    scores = (query.double() @ key.transpose(2, 3)) * scaling
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def layout(lengths):
    return attention.Layout.of(packed_batch(lengths, 5))


def test_a_layout_holds_offsets_lengths_and_the_longest():
    found = layout((5, 1, 9))
    assert (found.offsets.tolist(), found.lengths, found.longest) == ([0, 5, 6, 15], (5, 1, 9), 9)


def test_autocast_takes_queries_keys_and_values_of_different_dtypes(monkeypatch):
    lengths = (5, 1, 9)
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, 4, sum(lengths), 8, generator=generator) for _ in range(3))
    expected = reference(query, key, value, lengths, 0.3, None)
    given = []
    grouped = attention.attention
    monkeypatch.setattr(attention, "attention", lambda *a: (given.extend(a[:3]), grouped(*a))[1])
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attention.packed_attention(
            torch.nn.Module(), query, key, value.bfloat16(), None, scaling=0.3, packed=layout(lengths)
        )
    assert [one.dtype for one in given] == [torch.bfloat16] * 3  # what the CUDA kernel takes
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("window", [None, 3, 1000])
def test_equal_to_an_explicit_mask(heads, window):
    lengths = (5, 1, 9)
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(1, number, sum(lengths), 8, generator=generator) for number in (heads[0], heads[1], heads[1])
    )
    found, _ = attention.packed_attention(
        torch.nn.Module(), query, key, value, None, scaling=0.3, sliding_window=window, packed=layout(lengths)
    )
    torch.testing.assert_close(found.double(), reference(query, key, value, lengths, 0.3, window), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", ["mistral", "qwen2", "qwen3"])
def test_a_sliding_window_is_kept(arch):
    changes = {"sliding_window": 4} | (
        {"use_sliding_window": True, "max_window_layers": 0} if arch != "mistral" else {}
    )
    model = tiny_model(arch=arch, **changes)
    batch = packed_batch((13, 6), model.config.vocab_size)
    expected = alone(model, batch)
    wide = alone(tiny_model(arch=arch), batch)
    assert (expected - wide).abs().max() > 1e-3  # the window matters here
    chosen = kernels.choose(model)
    assert chosen.scorer.packed
    torch.testing.assert_close(chosen.scorer(model, batch).logps, expected, rtol=1e-4, atol=1e-4)


def test_a_sequence_does_not_see_its_neighbour():
    model = tiny_model()
    chosen = kernels.choose(model)
    one, other = packed_batch((6, 5), 300, seed=1), packed_batch((6, 5), 300, seed=1)
    other.input_ids[0, :6] = (other.input_ids[0, :6] + 1) % 300
    first, second = (chosen.scorer(model, batch).logps for batch in (one, other))
    assert torch.equal(first[0, 6:], second[0, 6:])
    assert not torch.equal(first[0, :6], second[0, :6])


def shared_batch(model, lengths=(9, 7, 12), parts=((0, 0), (0, 5), (1, 8))):
    """Random sequences, some of which go on from the beginning of an earlier one, and the same ones written out.

    `lengths` are the tokens of each one's own, `parts` the sequence and the number of tokens that it shares.
    """
    packed = packed_batch(lengths, model.config.vocab_size, seed=3)
    bounds = packed.offsets.tolist()
    whole, positions = [], []
    for number, (parent, tokens) in enumerate(parts):
        own = packed.input_ids[0, bounds[number] : bounds[number + 1]].tolist()
        whole.append((whole[parent][:tokens] if tokens else []) + own)
        positions += range(tokens, tokens + len(own))
    batch = replace(packed, position_ids=torch.tensor([positions]), prefix=torch.tensor(parts))
    return batch, whole


def alone_and_whole(model, batch, whole):
    """The log-probabilities of the asked targets of a shared batch, each sequence written out in full: [1, T]."""
    found = torch.zeros_like(batch.weight)
    bounds = batch.offsets.tolist()
    for number, ids in enumerate(whole):
        own = slice(bounds[number], bounds[number + 1])
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[:, len(ids) - (own.stop - own.start) :]
        found[:, own] = logits.log_softmax(-1).gather(-1, batch.target[:, own, None])[..., 0]
    return found * (batch.weight != 0)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_shared_beginning_gives_what_the_sequences_give_in_full(arch):
    changes = {"sliding_window": 4} if arch == "mistral" else {}
    model = tiny_model(arch=arch, **changes)
    scorer = kernels.choose(model).scorer
    assert scorer.packed
    batch, whole = shared_batch(model)
    found = scorer(model, batch).logps
    found.mul(batch.weight).sum().backward()
    given = gradients(model)
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    expected = alone_and_whole(model, batch, whole)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    expected.mul(batch.weight).sum().backward()
    assert given.keys() == gradients(model).keys()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(given[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda said, n=name: f"{n}: {said}")
    without, _ = shared_batch(model, parts=((0, 0), (0, 0), (0, 0)))
    model.set_attn_implementation("tunesmith")
    assert (scorer(model, replace(without, position_ids=batch.position_ids)).logps - found).abs().max() > 1e-2


def test_a_chain_of_shared_beginnings_is_seen_in_order():
    batch, _ = shared_batch(tiny_model())
    found = attention.Layout.of(batch)
    assert found.seen == (
        (slice(0, 9),),
        (slice(0, 5), slice(9, 16)),
        (slice(0, 5), slice(9, 12), slice(16, 28)),  # 8 tokens of the second, of which 5 are the first's
    )
    assert found.longest == 8 + 12


def test_no_mask_is_built(monkeypatch):
    import transformers.masking_utils as masks

    model = tiny_model()
    kernels.choose(model)

    def refuse(*args, **kwargs):
        raise AssertionError("a mask was built")

    for name in ("sdpa", "eager"):
        monkeypatch.setitem(masks.AttentionMaskInterface._global_mapping, name, refuse)
    Scorer.of(model)(model, packed_batch((6, 5), 300))
