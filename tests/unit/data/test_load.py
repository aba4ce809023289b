"""Everything between a recipe and the trainer: what is trained, what is held out, and the account of both."""

import numpy as np
import pytest

import fixtures_models
from fixtures_chats import chat, recipe, write_rows
from tunesmith.data.load import context_problem, load_rows
from tunesmith.errors import RecipeError

TOKENIZER = fixtures_models.tiny_tokenizer()
ROWS = [chat(f"question {n}", f"answer {n}") for n in range(10)]


@pytest.fixture
def said(tmp_path):
    """A recipe for the ten rows, with more data options."""

    def make(rows=ROWS, objective="sft", train=None, **data):
        path = write_rows(tmp_path / "rows.jsonl", rows)
        train = {"row_tokens": 40, "num_train_epochs": 1} | (train or {})
        return recipe(path, objective, train=train, cache_dir=str(tmp_path / "cache"), **data)

    return make


def texts(rows):
    """The answers in some packed rows."""
    found = []
    for row in rows:
        trained = np.split(row["target"], np.cumsum(row["lengths"])[:-1])
        weights = np.split(row["weight"], np.cumsum(row["lengths"])[:-1])
        found += [TOKENIZER.decode(ids[weight != 0]) for ids, weight in zip(trained, weights, strict=True)]
    return sorted(found)


def answers(*numbers):
    return sorted(f"answer {number}<|im_end|>" for number in numbers)


def test_all_rows_are_trained_when_none_is_held_out(said):
    rows = load_rows(said(), TOKENIZER)
    assert texts(rows.train) == answers(*range(10))
    assert rows.held_out is None and "eval" not in rows.ledger
    train = rows.ledger["train"]
    tokens = sum(len(row["input_ids"]) for row in rows.train)
    assert (train["rows_read"], train["samples"], train["samples_trained"]) == (10, 10, 10)
    assert train["tokens"] == tokens
    assert (train["packed_rows"], train["row_tokens"]) == (len(rows.train), 40)
    assert train["fill"] == round(tokens / (40 * len(rows.train)), 4)
    assert rows.end_tokens == (TOKENIZER.eos_token_id,)


def test_the_account_in_words(said):
    path = said().data.train[0].path
    lines = load_rows(said(eval=3), TOKENIZER).lines
    assert lines[:2] == (
        f"data: {path}: read as messages (format: auto)",
        "data: 10 rows read, 10 kept",
    )
    assert lines[3].startswith("data: lengths: half of the samples have at most ")
    assert lines[4] == "held out: 3 of 10 samples (data.seed 42)"
    assert lines[5].startswith("packed: rows of 40 tokens, ") and len(lines) == 6


def test_a_fraction_is_held_out(said):
    rows = load_rows(said(eval=0.3), TOKENIZER)
    held, trained = texts(rows.held_out), texts(rows.train)
    assert len(held) == 3 and sorted(held + trained) == answers(*range(10))
    assert rows.ledger["eval"]["samples"] == 3 and rows.ledger["train"]["samples_trained"] == 7
    assert rows.ledger["eval"]["packed_rows"] == len(rows.held_out)
    assert texts(load_rows(said(eval=0.3), TOKENIZER).held_out) == held


def test_other_sources_are_held_out(said, tmp_path):
    other = write_rows(tmp_path / "other.jsonl", [chat("q", "held"), chat("q", "")])
    rows = load_rows(said(eval=other), TOKENIZER)
    assert texts(rows.train) == answers(*range(10))
    assert texts(rows.held_out) == ["held<|im_end|>"]
    assert rows.ledger["eval"]["dropped"] == {"empty answer": {"count": 1, "first": [f"{other}:2"]}}
    assert "held out: 2 rows read, 1 kept" in rows.lines


def test_rows_of_an_iterable(said):
    rows = load_rows(said(eval=2), TOKENIZER, iter(ROWS))
    assert sorted(texts(rows.train) + texts(rows.held_out)) == answers(*range(10))
    assert rows.fingerprint == load_rows(said(eval=2), TOKENIZER).fingerprint


def test_the_fingerprint_is_of_the_tokens(said, tmp_path):
    one = load_rows(said(), TOKENIZER).fingerprint
    assert load_rows(said(max_tokens=1000), TOKENIZER).fingerprint == one
    assert load_rows(said(ROWS[:9]), TOKENIZER).fingerprint != one
    assert load_rows(said(template="plain"), TOKENIZER).fingerprint == one  # the tokenizer is prepared already
    seen = {one}
    for answer in ("a", "b"):
        other = write_rows(tmp_path / "other.jsonl", [chat("q", answer)])
        seen.add(load_rows(said(eval=other), TOKENIZER).fingerprint)
    assert len(seen) == 3


def test_the_ends_of_answers_are_found(said):
    ends = "{{- ('<end>' if message.role == 'assistant' else '') + '\n' }}"
    template = fixtures_models.CHATML.replace(
        "{{- '<|im_end|>\n' }}{% endfor %}\n{%- if add", ends + "{% endfor %}{%- if add"
    )
    tokenizer = fixtures_models.tiny_tokenizer(template)
    tokenizer.add_tokens("<end>")
    assert load_rows(said(), tokenizer).end_tokens == (tokenizer.convert_tokens_to_ids("<end>"),)


def test_a_shortened_document_does_not_end_with_an_end_token(said):
    rows = [{"text": "The river runs to the sea. " * 10}, {"text": "Short."}]
    for overlong in ("truncate", "split"):
        loaded = load_rows(said(rows, max_tokens=30, overlong=overlong), TOKENIZER)
        assert loaded.end_tokens == (TOKENIZER.eos_token_id,)


def test_the_parts_of_a_split_row_are_held_out_together(said):
    row = chat(*[f"{who} {n} " + "river " * 6 for n in range(3) for who in ("question", "answer")])
    rows = load_rows(said([row, *ROWS], max_tokens=70, eval=6, overlong="split", train={"row_tokens": 70}), TOKENIZER)
    assert rows.ledger["train"]["rows_split"] == 1 and rows.ledger["train"]["parts_dropped"] == 0
    for part in (rows.train, rows.held_out):
        assert sum("river" in text for text in texts(part)) in (0, 3)


def test_a_sequence_beyond_the_models_context_is_said(said):
    rows = load_rows(said(), TOKENIZER)
    longest = rows.ledger["train"]["longest_tokens"]
    assert context_problem(rows.ledger, longest) is None
    line = context_problem(rows.ledger, longest - 1)
    assert line.startswith(f"the longest sample has {longest} tokens, and the model was made for {longest - 1} ")
    assert f"data.max_tokens={longest - 1}" in line
    documents = load_rows(said([{"text": "The river. " * 50}], "pretrain"), TOKENIZER)  # in rows of 40
    assert context_problem(documents.ledger, 40) is None
    assert context_problem(documents.ledger, 39) is not None


def test_nothing_left_to_train_on_is_refused(said):
    with pytest.raises(RecipeError, match=r"data.eval: 10 of 10 samples are held out"):
        load_rows(said(eval=10), TOKENIZER)
