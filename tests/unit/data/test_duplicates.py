"""Samples that come again, exactly or nearly, and held-out ones among those that are trained on."""

import numpy as np
import pytest

from fixtures_chats import chat, recipe, write_rows
from fixtures_models import tiny_tokenizer
from tunesmith.data import duplicates, lengths
from tunesmith.data.duplicates import among, near_an_earlier, near_another, rows_of_a_band, sketched
from tunesmith.data.ledger import DUPLICATE, LEAKED, NEAR_DUPLICATE, NEARLY_LEAKED
from tunesmith.data.load import load_rows
from tunesmith.data.rendered import Rendered
from tunesmith.data.store import Store, StoreWriter, first_equal
from tunesmith.errors import DataError
from tunesmith.types import Tokens


def stored(folder, *samples):
    """A store of samples: lists of branches of ids, or of (ids, weights), and a label behind them where given."""
    with StoreWriter(folder) as writer:
        for number, (branches, label) in enumerate(samples, 1):
            tokens = tuple(Tokens(np.asarray(i, np.int32), np.asarray(w, np.float32)) for i, w in branches)
            writer.add([Rendered(f"f:{number}", tokens, label)])
    return Store.open(folder, cached=False)


def texts(folder, *ids):
    return stored(folder, *[([(one, np.ones(len(one)))], None) for one in ids])


def likeness(one, other):
    """Jaccard's, of runs of five tokens, as it is told."""
    runs = [{tuple(ids[n : n + 5]) for n in range(max(1, len(ids) - 4))} for ids in (list(one), list(other))]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


# Exactly


def test_what_equals_an_earlier_sample(tmp_path):
    ids, other = [1, 2, 3, 4], [1, 2, 3, 5]
    store = stored(
        tmp_path / "a",
        ([(ids, [0, 0, 1, 1])], None),
        ([(other, [0, 0, 1, 1])], None),
        ([(ids, [0, 0, 1, 1])], None),  # equals the first
        ([(ids, [0, 1, 1, 1])], None),  # learns more
        ([(ids, [1, 0, 1, 1])], None),  # equals the first: the first token of a sample is never learned
        ([(ids, [0, 0, 1, 1])], 1.0),  # has a label
        ([(ids[:2], [0, 1]), (ids[2:], [1, 1])], None),  # other sequences
        ([(ids, [0, 0, 1, 1])], 1.0),  # equals the sixth
    )
    assert store.equals.tolist() == [0, 1, 0, 3, 0, 5, 6, 5]
    same_ids = first_equal(store.key)
    assert same_ids.tolist() == [0, 1, 0, 0, 0, 0, 6, 0]  # weights and labels are no text
    assert store.place(4) == "f:5"


def test_keys_among_others():
    random = np.random.default_rng(0)
    keys = random.integers(0, 4, (60, 2)).astype(np.uint64)
    others = random.integers(0, 4, (5, 2)).astype(np.uint64)
    known = {tuple(key) for key in others.tolist()}
    assert among(keys, others).tolist() == [tuple(key) in known for key in keys.tolist()]
    assert not among(keys, others[:0]).any()


# Nearly


def changed(random, ids, number):
    """The ids with some of them, far from each other, changed: each change takes five runs away."""
    ids = ids.copy()
    ids[np.arange(number) * 12 + 6] = random.integers(90_000, 99_000, number)
    return ids


@pytest.mark.parametrize("asked", [0.45, 0.5, 0.8, 0.95, 1.0])
def test_near_samples_are_those_of_the_likeness(tmp_path, asked):
    random = np.random.default_rng(11)
    first = [random.integers(0, 9000, 130) for _ in range(40)]
    second = [changed(random, ids, number % 11) for number, ids in enumerate(first)]
    store = texts(tmp_path / "a", *first, *second)
    found = near_an_earlier(sketched(store, np.arange(80)), asked)
    true = [likeness(one, other) >= asked for one, other in zip(first, second, strict=True)]
    assert 0 < sum(true) < 40
    assert found.tolist() == [False] * 40 + true


def test_the_chance_to_miss_a_pair_is_small():
    for asked in (0.2, 0.5, 0.7, 0.8, 0.9, 0.99):
        rows = rows_of_a_band(asked)
        assert (1 - asked**rows) ** (duplicates.HASHES // rows) <= 1e-3
        assert (1 - asked ** (rows + 1)) ** (duplicates.HASHES // (rows + 1)) > 1e-3


def test_the_share_of_equal_hashes_is_the_likeness(tmp_path):
    random = np.random.default_rng(5)
    first = [random.integers(0, 9000, 130) for _ in range(60)]
    second = [changed(random, ids, 5) for ids in first]
    store = texts(tmp_path / "a", *first, *second)
    least = sketched(store, np.arange(120)).least
    true = likeness(first[0], second[0])  # of all pairs: 25 of 126 runs are other ones
    assert true == pytest.approx(101 / 151)
    assert (least[:60] == least[60:]).mean() == pytest.approx(true, abs=0.03)  # 60 times 64 hashes: 0.008 of spread


def test_many_alike_samples_are_found_in_linear_time(tmp_path, monkeypatch):
    random = np.random.default_rng(1)
    one = random.integers(0, 9000, 60)
    store = texts(tmp_path / "a", *[changed(random, one, 1) for _ in range(300)])
    compared = []
    runs = duplicates.Sketched.runs
    monkeypatch.setattr(duplicates.Sketched, "runs", lambda self, number: compared.append(number) or runs(self, number))
    assert near_an_earlier(sketched(store, np.arange(300)), 0.7).tolist() == [False] + [True] * 299
    assert len(compared) <= 4 * 300


def test_short_samples_are_one_run(tmp_path):
    store = texts(tmp_path / "a", [1, 2], [1, 2], [1, 3], [1, 2, 3, 4, 5], [7], [7])
    assert near_an_earlier(sketched(store, np.arange(6)), 0.5).tolist() == [False, True, False, False, False, True]


def test_near_samples_of_another_store(tmp_path):
    random = np.random.default_rng(4)
    own = [random.integers(0, 9000, 130) for _ in range(12)]
    others = [changed(random, own[3], 1), random.integers(0, 9000, 130), own[7], changed(random, own[9], 9)]
    one, two = texts(tmp_path / "a", *own), texts(tmp_path / "b", *others)
    found = near_another(sketched(one, np.arange(12)), sketched(two, np.arange(4)), 0.8)
    assert np.flatnonzero(found).tolist() == [3, 7]
    part = near_another(sketched(one, np.arange(12)).of(np.asarray([2, 7])), sketched(two, np.arange(4)), 0.8)
    assert part.tolist() == [False, True]


# In a run's account


ROWS = [chat(f"question {n}", f"answer {n}") for n in range(8)]
AGAIN = [*ROWS, ROWS[2], chat("question 3", "answer 3"), chat("question 3", "another")]


def loaded(tmp_path, rows, **options):
    path = write_rows(tmp_path / "rows.jsonl", rows)
    train = {"row_tokens": 500, "num_train_epochs": 1}
    return load_rows(recipe(path, cache_dir=str(tmp_path / "cache"), train=train, **options), tiny_tokenizer())


def conserved(counts):
    return counts["rows_read"] == counts["rows_kept"] + sum(one["count"] for one in counts["dropped"].values())


def samples_in(rows):
    return sum(row["lengths"].size for row in rows)


def test_duplicates_are_counted_and_kept_unless_they_are_not_wanted(tmp_path):
    path = tmp_path / "rows.jsonl"
    kept = loaded(tmp_path, AGAIN)
    counts = kept.ledger["train"]
    assert counts["found"] == {DUPLICATE: {"count": 2, "first": [f"{path}:9", f"{path}:10"]}}
    assert samples_in(kept.train) == counts["samples"] == 11 and counts["dropped"] == {}
    hint = f"2 samples equal an earlier one ({path}:9, {path}:10): data.duplicates=drop leaves them out"
    assert f"data: {hint}" in kept.lines
    dropped = loaded(tmp_path, AGAIN, duplicates="drop")
    less = dropped.ledger["train"]
    assert less["dropped"] == {DUPLICATE: {"count": 2, "first": [f"{path}:9", f"{path}:10"]}}
    assert less["found"] == counts["found"] and conserved(less)
    assert samples_in(dropped.train) == less["samples"] == less["samples_trained"] == 9
    lost = counts["tokens"] - less["tokens"]
    assert less["tokens_dropped"] == {DUPLICATE: lost}
    assert f"data: 2 dropped: {DUPLICATE} ({path}:9, {path}:10; {lost} tokens)" in dropped.lines
    assert sum(len(row["input_ids"]) for row in dropped.train) == less["tokens"]
    (own,) = less["sources"].values()
    assert own == {
        "rows_read": 11,
        "rows_kept": 9,
        "samples": 9,
        "tokens": less["tokens"],
        "trained_tokens": less["trained_tokens"],
    }
    assert sum(less["lengths"].values()) == 9
    assert dropped.fingerprint == kept.fingerprint  # of what was rendered: one store serves both


def test_what_sequences_share_is_accounted_for_alike_whatever_is_left_out(tmp_path):
    turns = chat("question", "answer", "and then?", "that")
    alone = loaded(tmp_path, [turns], template="per_turn").ledger["train"]
    assert alone["shared_tokens"] > 0
    kept = loaded(tmp_path, [turns, turns], template="per_turn").ledger["train"]
    less = loaded(tmp_path, [turns, turns], template="per_turn", duplicates="drop").ledger["train"]
    assert kept["tokens"] == 2 * alone["tokens"] and less["tokens_dropped"] == {DUPLICATE: alone["tokens"]}
    for name in ("tokens", "shared_tokens", "trained_tokens", "lengths", "longest_tokens"):
        assert less[name] == alone[name]
    (bucket,) = less["lengths"]
    assert lengths.bucket(less["length_percentiles"]["longest"]) == bucket


def test_the_parts_of_a_split_row_are_left_out_by_themselves(tmp_path):
    long = chat(*[f"{who} {n} " + "river " * 6 for n in range(3) for who in ("question", "answer")])
    first = {"messages": long["messages"][:2]}
    options = {"max_tokens": 70, "overlong": "split", "duplicates": "drop"}
    counts = loaded(tmp_path, [first, long, long], **options).ledger["train"]
    assert (counts["rows_read"], counts["rows_kept"], counts["samples"]) == (3, 2, 3)
    assert counts["dropped"][DUPLICATE] == {"count": 1, "first": [f"{tmp_path / 'rows.jsonl'}:3"]}
    assert counts["parts_dropped"] == 1 and counts["found"][DUPLICATE]["count"] == 4
    assert conserved(counts)


def test_near_duplicates_are_looked_for_when_asked(tmp_path):
    words = [f"w{n}" for n in range(80)]
    rows = [chat("one", " ".join(words)), chat("two", "short"), chat("one", " ".join([*words[:79], "end"]))]
    assert NEAR_DUPLICATE not in loaded(tmp_path, rows).ledger["train"]["found"]
    counts = loaded(tmp_path, rows, near_duplicates=0.8).ledger["train"]
    place = f"{tmp_path / 'rows.jsonl'}:3"
    assert counts["found"] == {NEAR_DUPLICATE: {"count": 1, "first": [place]}} and counts["samples"] == 3
    counts = loaded(tmp_path, rows, near_duplicates=0.8, duplicates="drop").ledger["train"]
    assert counts["dropped"] == {NEAR_DUPLICATE: {"count": 1, "first": [place]}}
    assert counts["samples"] == 2 and conserved(counts)


def test_leaked_samples_are_counted_for_each_way_of_holding_out(tmp_path):
    rows = [row for n in range(8) for row in [chat(f"question {n}", f"answer {n}")] * 2]
    for share in (0.5, 5):
        loose = loaded(tmp_path, rows, eval=share)
        held = loose.ledger["eval"]["samples"]
        counts = loose.ledger["train"]
        leaked = counts["found"][LEAKED]["count"]
        assert 0 < leaked <= held and counts["samples_trained"] == 16 - held
        assert any("of those to train on equal held-out ones" in line for line in loose.lines)
        tight = loaded(tmp_path, rows, eval=share, leakage="drop")
        counts = tight.ledger["train"]
        assert counts["samples_trained"] == 16 - held - leaked == samples_in(tight.train)
        assert counts["dropped"][LEAKED]["count"] == leaked and conserved(counts)
        assert tight.ledger["eval"]["samples"] == held
        once = loaded(tmp_path, rows, eval=0.5, duplicates="drop")
        assert LEAKED not in once.ledger["train"]["found"] and samples_in(once.held_out) == 4


def test_samples_of_held_out_sources_leak_too(tmp_path):
    words = [f"w{n}" for n in range(80)]
    near = chat("one", " ".join(words))
    other = write_rows(tmp_path / "other.jsonl", [ROWS[1], ROWS[5], chat("one", " ".join([*words[:79], "end"]))])
    rows = [*ROWS, near]
    counts = loaded(tmp_path, rows, eval=[other]).ledger["train"]
    path = tmp_path / "rows.jsonl"
    assert counts["found"] == {LEAKED: {"count": 2, "first": [f"{path}:2", f"{path}:6"]}}
    counts = loaded(tmp_path, rows, eval=[other], near_duplicates=0.8, leakage="drop").ledger["train"]
    assert {what: entry["count"] for what, entry in counts["dropped"].items()} == {LEAKED: 2, NEARLY_LEAKED: 1}
    assert counts["samples_trained"] == 6 and conserved(counts)
    with pytest.raises(DataError, match="data.leakage: all of 2 samples equal held-out ones"):
        loaded(tmp_path, [ROWS[1], ROWS[5]], eval=[other], leakage="drop")
