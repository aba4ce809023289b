"""What holds for any rows: every row and token is accounted for, and the order is the seed's alone."""

import contextlib
import json
import tempfile
from itertools import islice
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

import fixtures_chats as chats
from fixtures_models import tiny_tokenizer
from tunesmith.data import mix, render
from tunesmith.data.ledger import CUT, Ledger
from tunesmith.data.load import load_rows
from tunesmith.data.render import OVERLONG
from tunesmith.errors import DataError, RecipeError

TOKENIZER = tiny_tokenizer()
EMPTY = chats.chat("question", "")


@st.composite
def some_rows(draw, most=12):
    """Random conversations, some with an empty answer, some of them again."""
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    rows = [chats.conversation(random) if draw(st.integers(0, 5)) else EMPTY for _ in range(draw(st.integers(1, most)))]
    again = draw(st.lists(st.integers(0, len(rows) - 1), max_size=6))
    return [*rows, *[rows[number] for number in again]]


@contextlib.contextmanager
def written(*files):
    """The rows in files of their own, and a cache beside them."""
    with tempfile.TemporaryDirectory() as folder:
        yield (
            [chats.write_rows(Path(folder) / f"{n}.jsonl", rows) for n, rows in enumerate(files)],
            str(Path(folder) / "cache"),
        )


def accounted(counts):
    return counts["rows_kept"] + sum(entry["count"] for entry in counts["dropped"].values())


@settings(max_examples=40)
@given(some_rows(), st.integers(20, 300))
def test_tokens_read_are_tokens_kept_and_dropped(rows, limit):
    whole, ledger = Ledger(), Ledger()
    for one in chats.render(rows, max_tokens=100_000):
        whole.add(one)
    for one in chats.render(rows, max_tokens=limit):
        ledger.add(one)
    before, counts = whole.as_dict(), ledger.as_dict()
    assert counts["rows_read"] == len(rows) == accounted(counts)
    read = before["tokens"] + sum(before["tokens_dropped"].values())
    assert counts["tokens"] + sum(counts["tokens_dropped"].values()) == read
    assert counts["tokens_dropped"].get(OVERLONG, 0) == before["tokens"] - counts["tokens"]
    assert sum(counts["lengths"].values()) == counts["samples"]


@settings(max_examples=25)
@given(some_rows(6), st.integers(20, 120))
def test_what_truncation_cuts_off_is_counted(rows, limit):
    whole, ledger = Ledger(), Ledger()
    for one in chats.render(rows, max_tokens=100_000):
        whole.add(one)
    for one in chats.render(rows, max_tokens=limit, overlong="truncate"):
        ledger.add(one)
    before, counts = whole.as_dict(), ledger.as_dict()
    assert counts["rows_read"] == accounted(counts)
    assert counts["tokens"] + sum(counts["tokens_dropped"].values()) == before["tokens"] + sum(
        before["tokens_dropped"].values()
    )
    assert (counts["tokens_dropped"].get(CUT, 0) > 0) == (counts["rows_truncated"] > 0)


@settings(max_examples=30)
@given(some_rows(), some_rows(5), st.sampled_from([0.0, 0.3, 2.0]), st.booleans(), st.booleans())
def test_rows_and_tokens_of_a_run_are_conserved(one, two, share, duplicates, leakage):
    """Every way of leaving samples out, together: nothing is lost that is not in the account."""
    drop = {True: "drop", False: "keep"}
    with written(one, two) as (paths, cache):
        said = chats.recipe(
            paths, eval=share, duplicates=drop[duplicates], leakage=drop[leakage], cache_dir=cache, overlong="split",
            max_tokens=150, train={"row_tokens": 2000, "num_train_epochs": 1},
        )  # fmt: skip
        try:
            rows = load_rows(said, TOKENIZER)
        except (RecipeError, DataError) as error:
            assert "none is left to train on" in str(error) or "can be trained on" in str(error)
            return
    counts = rows.ledger["train"]
    assert counts["rows_read"] == len(one) + len(two) == accounted(counts)
    assert sum(own["rows_read"] for own in counts["sources"].values()) == counts["rows_read"]
    for name in ("rows_kept", "samples", "tokens", "trained_tokens"):
        assert sum(own[name] for own in counts["sources"].values()) == counts[name]
    parts = [rows.train, *([rows.held_out] if rows.held_out else [])]
    laid = [[tuple(ids.tolist()) for row in part for ids in sequences(row)] for part in parts]
    assert sum(map(len, laid)) == counts["samples"]
    assert sum(len(ids) for some in laid for ids in some) == counts["tokens"]
    assert sum(int((row["weight"] != 0).sum()) for part in parts for row in part) == counts["trained_tokens"]
    if leakage and rows.held_out:
        assert not set(laid[0]) & set(laid[1])
    epoch = counts["epoch"]
    assert (epoch["samples"], epoch["tokens"]) == (len(laid[0]), sum(map(len, laid[0])))


def sequences(row):
    """The token ids of each sample of a packed row."""
    return np.split(row["input_ids"], np.cumsum(row["lengths"])[:-1])


def test_the_rows_do_not_depend_on_the_number_of_processes(monkeypatch):
    monkeypatch.setattr(render, "CHUNK_ROWS", 3)
    random = np.random.default_rng(8)
    one, two = ([chats.conversation(random) for _ in range(number)] for number in (14, 9))
    found = []
    for processes in (1, 2):
        with written([*one, one[2]], [*two, EMPTY]) as (paths, cache):
            sources = [{"path": paths[0], "weight": 1.5}, {"path": paths[1], "num_samples": 30}]
            for how in ("concatenate", "first_exhausted", "all_exhausted"):  # the second and third from the cache
                said = chats.recipe(
                    sources, mix=how, weight_by="tokens", cache_dir=cache, num_processes=processes, eval=1,
                    duplicates="drop", max_tokens=2000, train={"row_tokens": 2000, "num_train_epochs": 2},
                )  # fmt: skip
                rows = load_rows(said, TOKENIZER)
                account = json.dumps(rows.ledger).replace(str(Path(paths[0]).parent), "")
                found.append(([row["input_ids"].tolist() for row in rows.train], account, rows.fingerprint))
    assert found[:3] == found[3:]
    assert found[0][0] != found[1][0] != found[2][0]


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@given(st.data(), sizes, st.sampled_from(["concatenate", "first_exhausted", "all_exhausted"]), st.booleans())
def test_any_mix_is_an_epoch_that_is_said(data, sizes, how, shuffle):
    weights = [data.draw(st.floats(0.1, 8)) for _ in sizes]
    repeats = [data.draw(st.sampled_from([1.0, 1.5, 3.0])) for _ in sizes]
    by = data.draw(st.sampled_from(["samples", "tokens"]))
    starts = np.cumsum([0, *sizes])
    own = [mix.Part(str(n), np.arange(starts[n], starts[n + 1]), weights[n], repeats[n]) for n in range(len(sizes))]
    lengths = np.random.default_rng(sum(sizes)).integers(1, 500, int(starts[-1]))
    said = chats.recipe(mix=how, weight_by=by, shuffle=shuffle).data
    first, second = islice(mix.epochs(said, own, lengths), 2)
    again = list(islice(mix.epochs(said, own, lengths), 2))
    assert first.tolist() == again[0].tolist() and second.tolist() == again[1].tolist()
    for order in (first, second):
        drawn = [int(np.isin(order, part.samples).sum()) for part in own]
        if how == "concatenate":
            assert drawn == [max(1, round(n * w * r)) for n, w, r in zip(sizes, weights, repeats, strict=True)]
            times = np.bincount(order, minlength=int(starts[-1]))
            assert all(np.ptp(times[part.samples]) <= 1 for part in own)
        else:
            done = [count >= part.whole for count, part in zip(drawn, own, strict=True)]
            assert all(done) if how == "all_exhausted" else any(done)
            assert how == "all_exhausted" or all(count <= part.whole for count, part in zip(drawn, own, strict=True))
        if not shuffle and how == "concatenate":
            assert [int(number) for number in np.digitize(order, starts)] == sorted(np.digitize(order, starts))
