"""Shifted sparse attention equals a written-out mask, and the whole attention where it is not in training."""

import json

import pytest
import torch

import fixtures_models
from numerics.packed import packed_batch
from tunesmith import Recipe, train
from tunesmith.engine import attention, kernels, shifted_attention
from tunesmith.engine.compat import attention_of
from tunesmith.errors import RecipeError

LENGTHS = (13, 1, 4, 22)


def mask(lengths, group, shift):
    """Which token sees which: [T, T], the groups of each sequence counted from its beginning."""
    place = torch.cat([torch.arange(length) for length in lengths])
    seq = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    number = (place + shift) // group
    return (place[:, None] >= place) & (seq[:, None] == seq) & (number[:, None] == number)


def reference(query, key, value, group, window=None):
    """Softmax over the explicit masks of both halves of the heads, in float64: [1, T, H, D]."""
    heads = query.shape[1]
    key, value = (one.double().repeat_interleave(heads // key.shape[1], 1) for one in (key, value))
    scores = (query.double() @ key.transpose(2, 3)) * 0.3
    first = -(-heads // 2)
    seen = torch.stack([mask(LENGTHS, group, 0)] * first + [mask(LENGTHS, group, group - group // 2)] * (heads - first))
    if window is not None:
        place = torch.arange(sum(LENGTHS))
        seen = seen & (place[:, None] - place < window)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def drawn(heads, number):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, n, sum(LENGTHS), 8, generator=generator, requires_grad=True) for n in (heads, number, number)
    ]


def attend(group, states, training=True, **options):
    layer = torch.nn.Module().train(training)
    packed = attention.Layout.of(packed_batch(LENGTHS, 5))
    return shifted_attention._Shifted(group)(layer, *states, None, scaling=0.3, packed=packed, **options)[0]


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (4, 1), (6, 3), (3, 1)])
@pytest.mark.parametrize("group", [2, 5, 8, 20])
def test_equal_to_an_explicit_mask_in_value_and_slope(heads, group):
    states, others = drawn(*heads), drawn(*heads)
    found, expected = attend(group, states), reference(*others, group)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for one, other in zip(states, others, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_a_window_and_dropout_of_nothing_go_together_with_groups():
    states = drawn(4, 2)
    torch.testing.assert_close(
        attend(8, states, sliding_window=3).double(), reference(*states, 8, window=3), rtol=1e-5, atol=1e-5
    )


def test_whole_attention_out_of_training_and_in_one_group():
    states = drawn(4, 2)
    packed = attention.Layout.of(packed_batch(LENGTHS, 5))
    whole = attention.packed_attention(torch.nn.Module(), *states, None, scaling=0.3, packed=packed)[0]
    assert torch.equal(attend(4, states, training=False), whole)
    assert torch.equal(attend(max(LENGTHS), states), whole)
    assert not torch.allclose(attend(max(LENGTHS) - 1, states), whole)


def test_no_token_sees_a_later_one():
    states = drawn(4, 2)
    changed = [one.detach().clone() for one in states]
    for one in changed:
        one[:, :, 30:] += 1  # the end of the last sequence
    assert torch.equal(attend(6, states)[:, :30], attend(6, changed)[:, :30])


def test_groups_are_cut_in_each_sequence():
    first, second = shifted_attention.layouts(attention.Layout.of(packed_batch(LENGTHS, 5)), 8)
    assert first.lengths == (8, 5, 1, 4, 8, 8, 6) and first.longest == 8
    assert second.lengths == (4, 8, 1, 1, 4, 4, 8, 8, 2)
    assert second.offsets.tolist() == [0, 4, 12, 13, 14, 18, 22, 30, 38, 40]


@pytest.fixture
def said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixtures_models.save_model(tmp_path / "model")
    rows = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure. " * 3} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def recipe(output_dir, group, **sections):
        return Recipe(
            model="./model", adapter={"r": 4}, optimizer={"learning_rate": 1e-2},
            data={"train": "rows.jsonl", "eval": 3, "max_tokens": 128, "cache_dir": "cache"},
            train={"output_dir": output_dir, "max_steps": 1, "shifted_sparse_attention": group}, **sections,
        )  # fmt: skip

    return recipe


def test_a_run_trains_with_groups_and_measures_without(said):
    runs = {}
    for name, group in (("plain", None), ("whole", 4096), ("groups", 16)):
        lines = (train(said(name, group)).folder / "metrics.jsonl").read_text().splitlines()
        (first, step, _) = map(json.loads, lines)
        runs[name] = (first["eval_loss"], step["loss"])
    assert runs["plain"] == runs["whole"]
    assert runs["groups"][0] == runs["plain"][0] and abs(runs["groups"][1] - runs["plain"][1]) > 1e-3


def test_what_it_does_not_go_with():
    base = {"model": "builtin:tiny", "data": {"train": "builtin:identity"}, "train": {"shifted_sparse_attention": 64}}
    with pytest.raises(RecipeError, match="shifted_sparse_attention=64: the objective dpo measures from a reference"):
        Recipe(**base, objective="dpo")
    with pytest.raises(RecipeError, match="shifted_sparse_attention=64: the objective seq2seq encodes prompts"):
        Recipe(**base, objective="seq2seq")
    for adapter in ("prompt", "p_tuning", "prefix"):
        with pytest.raises(RecipeError, match=f"shifted_sparse_attention=64 is for .* adapter={adapter} puts"):
            Recipe(**base, adapter=adapter)
    with pytest.raises(RecipeError, match="shifted_sparse_attention=64 is made of packed attention, which LlamaForC"):
        shifted_attention.use(fixtures_models.tiny_model(), False, 64)


def test_answers_in_a_run_see_all():
    model = fixtures_models.tiny_model().train()
    chosen = kernels.choose(model)
    assert "groups of 64 tokens" in shifted_attention.use(model, True, 64)
    assert attention_of(model) == "tunesmith_shifted_64"
    with chosen.generating(model):
        assert attention_of(model) == "sdpa"
    assert attention_of(model) == "tunesmith_shifted_64"
    chosen.restore(model)
    assert attention_of(model) == "sdpa"
