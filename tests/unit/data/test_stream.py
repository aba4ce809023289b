"""A stream: the rows of the same data that is not streamed, a block at a time, and the same ones after a resume."""

import base64
import contextlib
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fixtures_models
from fixtures_chats import chat, recipe, tokens_of, write_rows
from tunesmith.data import mix, reader, source, workers
from tunesmith.data.load import load_rows
from tunesmith.data.prepare import prepare
from tunesmith.data.stream import write_account
from tunesmith.errors import DataError, RecipeError

TOKENIZER = fixtures_models.tiny_tokenizer()
CHATS = [chat(f"question {n}", f"answer {n} " + "sure " * (n % 5)) for n in range(48)]
TEXTS = [{"text": f"text {n} " + "and so on " * (n * 7 % 11)} for n in range(40)]
LONG = [chat("and then?", f"that {n}", "and then?", "this " * 9) for n in range(20)]  # two exchanges each


@pytest.fixture
def streamed(tmp_path):
    """Opens a stream of rows or of files, and closes it after the test."""
    opened = []

    def opens(rows, point=None, **options):
        opened.append(open_(tmp_path, rows, point, **options))
        return opened[-1]

    yield opens
    for one in opened:
        one.close()


def said(folder, rows, objective="sft", steps=40, row_tokens=90, **data):
    """A recipe for rows, written to a file; or for sources, where their paths are given."""
    sources = rows if isinstance(rows[0], dict) and "path" in rows[0] else write_rows(folder / "rows.jsonl", rows)
    train = {"row_tokens": row_tokens, "max_steps": steps}
    return recipe(sources, objective, train=train, cache_dir=str(folder / "cache"), **data)


def open_(folder, rows, point=None, **options):
    return load_rows(said(folder, rows, **({"streaming": True} | options)), TOKENIZER, point=point)


def items(rows, first=0):
    return [rows[number] for number in range(first, len(rows))]


def same(some, others):
    """Whether two lists of packed rows are equal, bit for bit."""
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
            assert one[name].dtype == other[name].dtype
    return True


def samples(rows):
    """The samples in packed rows, as tuples of token numbers."""
    return [tuple(ids.tolist()) for row in rows for ids in np.split(row["input_ids"], np.cumsum(row["lengths"])[:-1])]


# What is in it


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_pass_has_every_sample_once_as_the_data_that_is_not_streamed(tmp_path, streamed, shuffle):
    whole = load_rows(
        recipe(write_rows(tmp_path / "all.jsonl", CHATS), train={"num_train_epochs": 1, "row_tokens": 90}), TOKENIZER
    )
    rows = streamed(CHATS, buffer_samples=16, shuffle=shuffle, steps=80).train  # 48 samples are three blocks
    passes, together = [], []
    for _ in range(2):
        found = []
        for _ in range(3):
            first, last = rows.block.start.packed_rows, rows.block.end.packed_rows
            found += [rows[number] for number in range(first, last)]
            rows[last]  # the next block
        passes.append(samples(found))
        together.append({frozenset(samples([row])) for row in found})
    assert Counter(passes[0]) == Counter(passes[1]) == Counter(samples(items(whole.train)))
    assert (passes[0] == passes[1]) is not shuffle
    assert (together[0] == together[1]) is not shuffle


def test_every_position_is_asked_for_the_token_after_it(streamed):
    for row in items(streamed(CHATS, buffer_samples=10).train):
        assert len(row["input_ids"]) <= 90
        for start, length in zip(np.cumsum([0, *row["lengths"]]), row["lengths"], strict=False):
            asked = row["target"][start : start + length - 1]
            np.testing.assert_array_equal(asked, row["input_ids"][start + 1 : start + length])


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A folder whose cache is shared by the examples of a property."""
    return tmp_path_factory.mktemp("long")


@settings(max_examples=15)
@given(buffer=st.integers(1, 45), row_tokens=st.integers(2, 120))
def test_documents_in_order_are_cut_as_if_they_were_one_text(long, buffer, row_tokens):
    """Three passes over the documents, and the documents three times in a file that is not streamed."""
    path = write_rows(long / "three.jsonl", TEXTS * 3)
    once = {"num_train_epochs": 1, "row_tokens": row_tokens}
    whole = load_rows(recipe(path, "pretrain", train=once, shuffle=False, cache_dir=str(long / "cache")), TOKENIZER)
    full = [row for row in items(whole.train) if len(row["input_ids"]) == row_tokens]
    options = {"row_tokens": row_tokens, "steps": len(full), "shuffle": False, "buffer_samples": buffer}
    stream = open_(long, TEXTS, objective="pretrain", **options)
    with contextlib.closing(stream):
        assert same(items(stream.train), full)


@pytest.mark.parametrize("buffer", [3, 17, 40])
def test_shuffled_documents_lose_no_token(streamed, buffer):
    """What the rows hold and what is carried into the next block are all tokens that were read, each once."""
    rows = streamed(TEXTS, objective="pretrain", buffer_samples=buffer).train
    laid = Counter(int(token) for row in items(rows)[: rows.block.start.packed_rows] for token in row["input_ids"])
    start = rows.block.start
    for ids, _ in start.carried:
        laid += Counter(np.frombuffer(base64.b64decode(ids), np.int32).tolist())
    read = start.places[0].passes * len(TEXTS) + start.places[0].row
    assert read >= 40
    expected = Counter()
    for text in itertools.islice(itertools.cycle(TEXTS), read):
        expected.update([*tokens_of(text["text"]), TOKENIZER.eos_token_id])
    assert laid == expected
    assert all(len(row["input_ids"]) == 90 for row in items(rows, start.packed_rows))


def test_a_block_is_shuffled_and_nothing_leaves_it(streamed):
    rows = streamed(CHATS, buffer_samples=24).train
    laid = [one for number in range(rows.block.end.packed_rows) for one in samples([rows[number]])]
    in_order = [tuple(branches[0].ids.tolist()) for branches in rows.block.buffer.samples]
    assert laid != in_order and sorted(laid) == sorted(in_order)
    assert asked(rows) == [f"question {number}" for number in range(24)]


# Several sources


@pytest.fixture
def two(tmp_path):
    """Two sources: 30 short chats of x, 12 long ones of y."""
    short = write_rows(tmp_path / "x.jsonl", [chat(f"x{n}", f"x is {n}") for n in range(30)])
    tall = write_rows(tmp_path / "y.jsonl", [chat(f"y{n}", f"y is {n} " + "so " * 20) for n in range(12)])
    return lambda x=1.0, y=1.0: [{"path": short, "weight": x}, {"path": tall, "weight": y}]


def asked(rows):
    """The questions of the samples in a stream's block, in the order in which they were read."""
    texts = [TOKENIZER.decode(one[0].ids) for one in rows.block.buffer.samples]
    return [text.split("user\n")[1].split("<|im_end|>")[0] for text in texts]


@pytest.mark.parametrize("end", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize("weight_by", ["samples", "tokens"])
@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.5, 2.25)])
def test_sources_are_drawn_as_where_they_are_not_streamed(tmp_path, streamed, two, weights, weight_by, end):
    options = {"mix": end, "weight_by": weight_by, "shuffle": False}
    rows = streamed(two(*weights), buffer_samples=25, steps=500, **options).train
    plain = said(tmp_path, two(*weights), **options)
    store = prepare(plain, plain.data.train, TOKENIZER)
    drawn = mix.epochs(plain.data, mix.parts(plain.data.train, store, np.arange(len(store))), store.lengths())
    numbers = np.concatenate([next(drawn) for _ in range(3)])
    texts = [TOKENIZER.decode(store.branches(number)[0].ids) for number in numbers]
    found = []
    while len(found) < len(texts):
        found += asked(rows)
        rows[rows.block.end.packed_rows]  # the next block
    assert found == [text.split("user\n")[1].split("<|im_end|>")[0] for text in texts]
    assert rows.block.start.epoch == 3


def test_concatenated_sources_come_one_after_the_other_as_often_as_their_weights_say(streamed, two):
    found = streamed(two(2, 1), buffer_samples=80, shuffle=False)
    once = [f"x{n}" for n in range(30)]
    assert asked(found.train) == [*once, *once, *(f"y{n}" for n in range(12))]  # an epoch
    assert any("one after the other: data.mix=all_exhausted mixes them" in line for line in found.lines)


def test_a_part_of_a_pass_is_refused_where_sources_are_concatenated(streamed, two):
    with pytest.raises(RecipeError, match=r"data.train.1.weight is 0.5.*whole number, or data.mix=all_exhausted"):
        streamed(two(1, 0.5))


@pytest.mark.parametrize(("number", "expected"), [(5, range(5)), (13, [*range(8), *range(5)])])
def test_num_samples_ends_a_pass_or_repeats_the_rows(tmp_path, streamed, number, expected):
    path = write_rows(tmp_path / "few.jsonl", [chat(f"q{n}", "so") for n in range(8)])
    found = streamed([{"path": path, "num_samples": number}], shuffle=False)
    assert asked(found.train) == [f"q{n}" for n in expected]
    assert found.train.block.end.epoch == 1


# Resume


@settings(max_examples=25)
@given(
    cut=st.integers(0, 39),
    buffer=st.integers(1, 60),
    how=st.sampled_from(["sft", "split", "pretrain", "samples", "tokens", "weights"]),
    shuffle=st.booleans(),
)
def test_a_resumed_stream_gives_the_very_same_remaining_rows(long, cut, buffer, how, shuffle):
    """At any cut, whatever was read ahead of it; the point goes through JSON, as in a checkpoint."""
    options = {"buffer_samples": buffer, "shuffle": shuffle}
    rows = TEXTS if how == "pretrain" else LONG if how == "split" else CHATS
    if how == "pretrain":
        options["objective"] = "pretrain"
    elif how == "split":
        options |= {"max_tokens": 40, "overlong": "split"}
    elif how != "sft":
        paths = [write_rows(long / "a.jsonl", CHATS[:30]), write_rows(long / "b.jsonl", CHATS[30:])]
        rows = [{"path": path, "weight": weight} for path, weight in zip(paths, (2, 3), strict=True)]
        if how != "weights":
            options |= {"mix": "first_exhausted", "weight_by": how}
    with contextlib.closing(open_(long, rows, **options)) as whole:
        before = [whole.train[number] for number in range(min(cut + 2, 40))]  # a step's rows are fetched ahead
        counts = whole.train.account(cut)
        point = json.loads(json.dumps(whole.train.point(cut)))
        expected = before[cut:] + items(whole.train, cut + 2)
        last = whole.train.account(40)
    with contextlib.closing(open_(long, rows, point, **options)) as again:
        assert same(items(again.train, cut), expected)
        assert again.train.account(40) == last
        assert again.fingerprint == whole.fingerprint and again.end_tokens == whole.end_tokens
    assert counts["samples"] <= last["samples"]


def test_the_rows_before_the_block_of_a_point_are_not_rendered(tmp_path, streamed, monkeypatch):
    rows = streamed(CHATS, buffer_samples=16, shuffle=False).train
    rows[rows.block.end.packed_rows]  # of the second block
    point = rows.point(rows.block.start.packed_rows)
    assert point["places"][0]["row"] == 16 and point["block"] == 1
    seen = []
    submit = workers.Workers.submit
    monkeypatch.setattr(
        workers.Workers, "submit", lambda self, some, *rest: seen.extend(some) or submit(self, some, *rest)
    )
    again = streamed(CHATS, point, buffer_samples=16, shuffle=False)
    assert seen[0][0].endswith("rows.jsonl:17")
    assert "data: the stream goes on in block 2, after" in "\n".join(again.lines)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_number_of_processes_changes_nothing(streamed, two, mixed):
    options = {"buffer_samples": 25} | ({"mix": "all_exhausted"} if mixed else {})
    alone, several = (streamed(two(), num_processes=number, **options) for number in (1, 2))
    assert same(items(alone.train), items(several.train))
    assert alone.train.account(40) == several.train.account(40) and alone.fingerprint == several.fingerprint


# What is said and counted


def test_the_account_is_of_the_rows_trained_on_and_not_of_those_rendered_ahead(tmp_path, streamed):
    found = streamed([*CHATS, chat("empty", " ")], buffer_samples=24, shuffle=False)
    rows = found.train
    assert found.ledger["train"]["rows_read"] == 24
    first = rows.block.end.packed_rows
    ahead = rows[first]  # the second block ends with the row that is empty, and the epoch
    assert len(ahead) and rows.account(first)["rows_read"] == 24
    counts = rows.account(first + 1)
    assert (counts["rows_read"], counts["rows_kept"], counts["samples"]) == (49, 48, 48)
    assert counts["dropped"]["empty answer"]["count"] == 1 and counts["epochs"] == 1
    used = sum(len(rows[number]["input_ids"]) for number in range(first, counts["packed_rows"]))
    assert rows.block.end.packed_tokens == found.ledger["train"]["tokens"] + used == counts["tokens"]
    (tmp_path / "ledger.json").write_text('{"train": {}, "eval": {"samples": 3}}')
    write_account(tmp_path, rows, first + 1)
    assert json.loads((tmp_path / "ledger.json").read_text()) == {"train": counts, "eval": {"samples": 3}}


def test_the_first_block_is_said_at_the_start(streamed):
    lines = streamed(CHATS, buffer_samples=16).lines
    assert lines[0].endswith("rows.jsonl: read as messages (format: auto)")
    assert lines[1:3] == (
        "data: a stream, of which 16 samples are shuffled and packed at a time; the first of them:",
        "data: 16 rows read, 16 kept",
    )
    assert lines[-1].startswith("packed: rows of 90 tokens, ")


def test_evaluation_has_sources_of_its_own(tmp_path, streamed):
    held = write_rows(tmp_path / "held.jsonl", CHATS[:5])
    found = streamed(CHATS, eval=[{"path": held, "weight": 2}])
    assert found.held_out is not None and sorted(samples(items(found.held_out))) == sorted(
        samples(items(load_rows(recipe(held, train={"num_train_epochs": 1, "row_tokens": 90}), TOKENIZER).train))
    )
    assert found.ledger["eval"]["rows_read"] == 5
    assert any(line.startswith("held out: every sample is taken once") for line in found.lines)


def test_another_file_or_option_is_another_stream(tmp_path, streamed, monkeypatch):
    before = streamed(CHATS).fingerprint
    assert streamed(CHATS).fingerprint == before
    assert streamed([*CHATS[:-1], chat("question 47", "other")]).fingerprint != before
    assert streamed(CHATS, buffer_samples=8).fingerprint != before
    assert streamed(CHATS, num_processes=1).fingerprint == before
    used = fixtures_models.tiny_tokenizer()
    used("a text", truncation=True, max_length=2, padding="max_length")  # what a call leaves behind
    with contextlib.closing(load_rows(said(tmp_path, CHATS, streaming=True), used)) as same_rows:
        assert same_rows.fingerprint == before
    monkeypatch.setattr(source, "PIECES", 2)
    monkeypatch.setattr(source, "PIECE_BYTES", 64)
    in_pieces = streamed(CHATS).fingerprint
    assert in_pieces != before
    assert streamed([*CHATS[:-1], chat("question 47", "answer 48 sure sure ")]).fingerprint != in_pieces


# What is refused


def test_a_fault_far_behind_is_raised_when_its_rows_are_needed(tmp_path, streamed, monkeypatch):
    path = tmp_path / "broken.jsonl"
    monkeypatch.setattr(reader, "CHUNK_ROWS", 32)
    write_rows(path, CHATS * 4)
    with path.open("a") as file:
        file.write("{broken\n")
    rows = streamed([{"path": str(path)}], buffer_samples=100, steps=500).train
    assert rows[0]["lengths"].sum()
    with pytest.raises(DataError, match=r"broken.jsonl:193 is not valid JSON"):
        items(rows)


def test_a_source_without_a_usable_row_is_refused(streamed):
    with pytest.raises(DataError, match=r"rows.jsonl: no row can be trained on: 3 × empty answer"):
        streamed([chat(f"q{n}", " ") for n in range(3)])


def test_a_source_without_a_usable_row_is_read_once_and_its_own_reasons_are_said(tmp_path, streamed):
    good = write_rows(tmp_path / "good.jsonl", [*CHATS, {"messages": []}])
    bad = write_rows(tmp_path / "bad.jsonl", [chat(f"q{n}", " ") for n in range(3)])
    sources = [{"path": good}, {"path": bad, "num_samples": 10**12}]
    for mix_ in ({}, {"mix": "all_exhausted"}):
        with pytest.raises(DataError, match=r"bad.jsonl: no row can be trained on: 3 × empty answer$"):
            items(streamed(sources, steps=500, **mix_).train)


def test_rows_of_python_are_read_lazily_and_again(tmp_path, streamed):
    class Rows:
        begun = given = 0

        def __iter__(self):
            Rows.begun += 1
            for row in CHATS * 500:
                Rows.given += 1
                yield row

    options = said(tmp_path, CHATS, streaming=True, buffer_samples=16, shuffle=False, steps=2)
    with contextlib.closing(load_rows(options, TOKENIZER, Rows())) as rows:
        assert same(items(rows.train), items(streamed(CHATS, buffer_samples=16, shuffle=False, steps=2).train))
    assert Rows.begun >= 2 and Rows.given < 2000
    with pytest.raises(DataError, match="rows is a generator, which can be read once"):
        load_rows(options, TOKENIZER, (row for row in CHATS))
    with pytest.raises(DataError, match="rows is a list that gives no row"):
        load_rows(options, TOKENIZER, [])


def test_workers_of_the_loader_are_refused(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", CHATS)
    train = {"max_steps": 2, "row_tokens": 90, "transformers": {"dataloader_num_workers": 2}}
    with pytest.raises(RecipeError, match=r"dataloader_num_workers is 2.*data.num_processes"):
        load_rows(recipe(path, train=train, streaming=True), TOKENIZER)
