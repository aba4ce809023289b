"""What an epoch is: which samples, how often, in which order; by the seed alone."""

from itertools import islice

import numpy as np
import pytest

from fixtures_chats import chat, recipe, write_rows
from fixtures_models import tiny_tokenizer
from tunesmith.data import mix
from tunesmith.data.load import load_rows
from tunesmith.data.mix import Part, due
from tunesmith.errors import RecipeError


def some(*sizes, weights=None, repeats=None):
    """Sources with so many samples each, numbered through all of them."""
    starts = np.cumsum([0, *sizes])
    return [
        Part(f"{name}.jsonl", np.arange(start, start + size), weight, again)
        for name, start, size, weight, again in zip(
            "abcdefg", starts, sizes, weights or [1.0] * len(sizes), repeats or [1.0] * len(sizes), strict=False
        )
    ]


def epochs(own, number=1, lengths=None, **options):
    lengths = np.full(10_000, 5) if lengths is None else np.asarray(lengths)
    return [order.tolist() for order in islice(mix.epochs(recipe(**options).data, own, lengths), number)]


def counts(order, own):
    return [int(np.isin(order, part.samples).sum()) for part in own]


# One after the other


def test_by_default_every_sample_comes_once_in_the_order_of_the_seed():
    first, second = epochs(some(30, 20), 2)
    assert sorted(first) == sorted(second) == list(range(50)) and first != second
    assert first == np.random.default_rng([42, 2, 0]).permutation(50).tolist()  # as it always was
    assert epochs(some(30, 20)) == [first] != epochs(some(30, 20), seed=7)
    assert epochs(some(3, 2), 2, shuffle=False) == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize(
    ("weight", "repeats", "total"), [(2.0, 1.0, 20), (2.5, 1.0, 25), (0.3, 1.0, 3), (1.0, 3.2, 32)]
)
def test_a_weight_is_how_often_each_sample_comes(weight, repeats, total):
    own = some(10, 4, weights=[weight, 1.0], repeats=[repeats, 1.0])
    for order in epochs(own, 3):
        assert len(order) == total + 4
        times = np.bincount(order, minlength=14)
        assert set(times[:10]) <= {total // 10, total // 10 + 1} and (times[10:] == 1).all()


def test_the_fraction_of_a_weight_is_another_one_each_epoch_until_all_came():
    own = some(10, weights=[0.2])
    chosen = epochs(own, 5)
    assert all(len(order) == 2 for order in chosen)
    assert sorted(sample for order in chosen for sample in order) == list(range(10))
    assert epochs(own, 5, seed=1) != chosen


def test_repeats_in_file_order_are_whole_passes_and_then_a_part_in_order():
    (order,) = epochs(some(4, 2, weights=[2.5, 1.0]), shuffle=False)
    assert order[:8] == [0, 1, 2, 3] * 2 and order[10:] == [4, 5]
    assert order[8] < order[9] < 4


def test_a_tiny_weight_still_takes_a_sample():
    own = some(3, weights=[0.001])
    assert sorted(sample for order in epochs(own, 3) for sample in order) == [0, 1, 2]


# Drawn from


def test_by_hand_two_to_one():
    """Due at 1/4, 3/4, 5/4 ... and at 1/2, 3/2 ...: a b a, a b a."""
    own = some(4, 3, weights=[2.0, 1.0])
    (order,) = epochs(own, mix="first_exhausted", shuffle=False)
    assert order == [0, 4, 1, 2, 5, 3]
    assert [due(0, 1, 2.0), due(1, 1, 2.0), due(0, 1, 1.0)] == [0.25, 0.75, 0.5]
    assert due(30, 10, 0.5) == 70


def test_until_the_first_source_is_used_up():
    own = some(100, 1000)
    first, second = epochs(own, 2, mix="first_exhausted")
    for order in (first, second):
        assert sorted(sample for sample in order if sample < 100) == list(range(100))
        assert abs(len(order) - 200) <= 1
    large = [sample for order in (first, second) for sample in order if sample >= 100]
    assert len(set(large)) == len(large)  # the second epoch goes on where the first stopped
    assert [s for s in first if s < 100] != [s for s in second if s < 100]


def test_until_all_sources_are_used_up():
    own = some(10, 55, weights=[1.0, 2.0])
    (order,) = epochs(own, mix="all_exhausted")
    small, large = counts(order, own)
    assert large == 55 and len({sample for sample in order if sample >= 10}) == 55
    assert abs(small - 55 / 2) <= 1
    passes = [sample for sample in order if sample < 10]
    assert [sorted(passes[n : n + 10]) for n in (0, 10)] == [list(range(10))] * 2
    assert passes[:10] != passes[10:20]  # each pass in an order of its own


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.7, 0.2, 0.1), (5.0, 1.0, 1.0, 0.5)])
def test_shares_of_samples_are_exact_at_every_place(weights):
    own = some(*[400] * len(weights), weights=list(weights))
    (order,) = epochs(own, mix="first_exhausted")
    source = np.asarray(order) // 400
    drawn = np.cumsum(source[:, None] == np.arange(len(weights)), axis=0)  # [E, sources]
    shares = np.asarray(weights) / sum(weights)
    wanted = np.arange(1, len(order) + 1)[:, None] * shares
    off = np.abs(drawn - wanted).max(axis=0)
    assert (off <= 0.5 * (1 - shares) + shares * (len(weights) - 1) / 2 + 1e-9).all()


def test_shares_of_tokens_are_exact_to_a_sample():
    random = np.random.default_rng(3)
    lengths = np.concatenate([random.integers(5, 40, 3000), random.integers(50, 400, 3000)])
    own = some(3000, 3000, weights=[1.0, 3.0])
    (order,) = epochs(own, mix="first_exhausted", weight_by="tokens", lengths=lengths)
    drawn = [np.cumsum(np.where(np.isin(order, part.samples), lengths[order], 0)) for part in own]
    off = drawn[0] / 1.0 - drawn[1] / 3.0
    assert np.abs(off).max() <= 40 / 2 + 400 / 2 / 3  # half of the longest sample of each
    small, large = counts(epochs(own, mix="first_exhausted", lengths=lengths)[0], own)
    assert large == 3000 and abs(small - 1000) <= 1  # by samples it is another number


def test_num_samples_makes_a_set_larger_that_is_drawn_from():
    own = some(10, 100, repeats=[3.0, 1.0])
    (order,) = epochs(own, mix="first_exhausted")
    assert counts(order, own)[0] == 30


def test_in_file_order_sources_take_turns():
    own = some(3, 2)
    assert epochs(own, mix="all_exhausted", shuffle=False) == [[0, 3, 1, 4, 2]]
    again = epochs(some(4, 2), 2, mix="all_exhausted", shuffle=False)
    assert again[0] == [0, 4, 1, 5, 2, 4, 3] and again[1][:2] == [0, 5]


def test_a_source_without_samples_cannot_be_drawn_from():
    own = some(3, 0)
    assert sorted(epochs(own)[0]) == [0, 1, 2]
    with pytest.raises(RecipeError, match=r"data.mix: all_exhausted draws .* b.jsonl has no sample left to train on"):
        epochs(own, mix="all_exhausted")


# Through a recipe


@pytest.fixture
def files(tmp_path):
    """Ten short rows and twenty longer ones."""
    short = write_rows(tmp_path / "short.jsonl", [chat(f"q {n}", f"a {n}") for n in range(10)])
    long = write_rows(tmp_path / "long.jsonl", [chat(f"question {n} " * 4, f"answer {n} " * 4) for n in range(20)])
    return {"path": short}, {"path": long}, str(tmp_path / "cache")


def loaded(files, one=None, two=None, **options):
    short, long, cache = files
    sources = [short | (one or {}), long | (two or {})]
    train = {"row_tokens": 400, "num_train_epochs": 1}
    return load_rows(recipe(sources, cache_dir=cache, train=train, **options), tiny_tokenizer())


def test_what_each_source_brings_is_counted_and_said(files):
    rows = loaded(files)
    train = rows.ledger["train"]
    short, long = train["sources"].values()
    assert (short["rows_read"], short["samples"], long["rows_read"], long["samples"]) == (10, 10, 20, 20)
    assert short["tokens"] + long["tokens"] == train["tokens"]
    assert short["trained_tokens"] + long["trained_tokens"] == train["trained_tokens"]
    said = [line for line in rows.lines if line.startswith("data: of ")]
    share = short["tokens"] / train["tokens"]
    assert f"short.jsonl: 10 samples of 10 rows, {short['tokens']:,} tokens ({share:.1%} of all)" in said[0]
    assert len(said) == 2 and not any("an epoch" in line for line in rows.lines)


def test_an_epoch_that_is_mixed_is_said(files):
    rows = loaded(files, {"num_samples": 25}, {"weight": 0.5})
    epoch = rows.ledger["train"]["epoch"]
    assert [own["samples"] for own in epoch["sources"].values()] == [25, 10]
    assert "data: an epoch is 35 samples" in "\n".join(rows.lines)
    assert sum(row["lengths"].size for row in rows.train) == 35
    assert sum(len(row["input_ids"]) for row in rows.train) == epoch["tokens"]
    drawn = loaded(files, mix="first_exhausted", weight_by="tokens").ledger["train"]["epoch"]
    tokens = [own["tokens"] for own in drawn["sources"].values()]
    assert abs(tokens[0] - tokens[1]) < 60  # a short sample and half a long one


def test_the_mix_does_not_depend_on_devices(files):
    """Rows are one list, of which every process takes its part: the same whatever the batch."""

    def laid(**train):
        sources = [files[0] | {"weight": 1.5}, files[1]]
        said = recipe(sources, cache_dir=files[2], mix="all_exhausted", train={"row_tokens": 300, **train})
        return [row["input_ids"].tolist() for row in load_rows(said, tiny_tokenizer()).train]

    one = laid(max_steps=12)
    assert laid(max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2) == one


def test_held_out_sources_are_taken_once_and_it_is_said(files, tmp_path):
    held = write_rows(tmp_path / "held.jsonl", [chat("x", "y"), chat("y", "z")])
    rows = loaded(files, eval=[{"path": held, "weight": 3.0}], mix="all_exhausted")
    assert sum(row["lengths"].size for row in rows.held_out) == 2
    assert "held out: every sample is taken once: weight and num_samples repeat none that is held out" in rows.lines
    assert not any("taken once" in line for line in loaded(files, eval=[held]).lines)


def test_rows_of_a_script_are_repeated_and_cut_too():
    rows = [chat(f"q {n}", f"a {n}") for n in range(6)]
    for wanted in (4, 15):
        said = recipe({"path": "rows.jsonl", "num_samples": wanted}, train={"row_tokens": 200, "num_train_epochs": 1})
        assert sum(row["lengths"].size for row in load_rows(said, tiny_tokenizer(), rows).train) == wanted
