"""Every token is asked once behind what its window has before it, and the numbers are those of transformers' logits."""

import json
import math
from pathlib import Path

import pytest
import torch

import fixtures_models
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation import _texts
from tunesmith.evaluation.perplexity import Perplexity
from tunesmith.generate.subject import Subject

TEXTS = [
    " ".join(f"The cat number {at} sat on the mat." for at in range(12)),
    "Où est la gare? 你好，世界。",
    "Rain.",
]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = fixtures_models.save_model(tmp_path_factory.mktemp("perplexity") / "model")
    return Subject.open(str(folder), "cpu", "float32")


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return str(tmp_path / "rows.jsonl")


def test_a_txt_is_one_text_whatever_the_number_of_samples(tmp_path):
    from tunesmith import schema

    (tmp_path / "lines.txt").write_text("\n".join(TEXTS))
    assert _texts.some(str(tmp_path / "lines.txt"), 1) == _texts.some(str(tmp_path / "lines.txt"), 3)
    assert _texts.some(str(tmp_path / "lines.txt"), 1) == ["\n".join(TEXTS)]
    (told,) = (one.help for one in schema.options(Perplexity) if one.path == "num_samples")
    assert "a txt is one, however many lines it has" in told
    page = Path(__file__).parents[3] / "docs" / "guide" / "evaluate.md"
    assert "`perplexity` reads a `.txt` as one text" in page.read_text(encoding="utf-8")


@torch.no_grad()
def lost(window, asked):
    logits = fixtures_models.tiny_model()(input_ids=torch.tensor([window])).logits[0].double().log_softmax(-1)
    return sum(-logits[at - 1, window[at]].item() for at in range(len(window) - asked, len(window)))


@pytest.mark.parametrize(("size", "stride"), [(32, None), (32, 31), (32, 5), (4000, None)])
def test_the_numbers_are_those_of_transformers(subject, rows, size, stride):
    found = Perplexity(data=rows, max_tokens=size, stride=stride).run(subject)
    tokenizer, total, tokens = fixtures_models.tiny_tokenizer(), 0.0, 0
    for text in TEXTS:
        ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
        done = 1
        while done < len(ids):  # the first window is whole, and each after it ahead by the stride
            end = min(len(ids), size if done == 1 else done + (stride or size // 2))
            total += lost(ids[max(0, end - size) : end], end - done)
            tokens, done = tokens + end - done, end
    size_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found.metrics["tokens"] == tokens == sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)
    assert found.metrics["bytes"] == size_bytes
    assert math.log(found.metrics["perplexity"]) == pytest.approx(total / tokens, abs=1e-5)
    assert found.metrics["byte_perplexity"] == pytest.approx(math.exp(total / size_bytes), abs=1e-5)
    assert found.metrics["bits_per_byte"] == pytest.approx(total / size_bytes / math.log(2), abs=1e-5)
    for name in ("perplexity", "byte_perplexity", "bits_per_byte"):
        low, high = found.intervals[name]
        assert low < found.metrics[name] < high


def test_one_text_is_drawn_by_its_windows(subject, tmp_path):
    (tmp_path / "text.txt").write_text(TEXTS[0])
    found = Perplexity(data=str(tmp_path / "text.txt"), max_tokens=32).run(subject)
    assert len(found.items) > 5 and {item["text"] for item in found.items} == {0}
    assert sum(item["tokens"] for item in found.items) == found.metrics["tokens"]
    low, high = found.intervals["perplexity"]
    assert low < found.metrics["perplexity"] < high
    (tmp_path / "text.txt").write_text("Rain.")
    assert Perplexity(data=str(tmp_path / "text.txt")).run(subject).intervals == {}


def test_windows_begin_as_texts_of_the_tokenizer_do(subject, monkeypatch):
    """A token that the tokenizer puts first stands before every window, and counts as one of its tokens."""
    monkeypatch.setattr(Subject, "begin", property(lambda self: (1,)))
    windows = Perplexity(max_tokens=16, stride=4)._windows(subject, TEXTS[0])
    ids = [1, *subject.ids(TEXTS[0])]
    assert windows[0] == (ids[:16], 15) and windows[1] == ([1, *ids[5:20]], 4)
    assert all(window[0] == 1 and len(window) <= 16 for window, _ in windows)
    assert sum(asked for _, asked in windows) == len(ids) - 1
    with pytest.raises(RecipeError, match=r"windows of 16 tokens are at most 14 apart \(15\)"):
        Perplexity(max_tokens=16, stride=15).run(subject)


def test_made_texts_and_the_first_of_a_file(subject, rows, tmp_path):
    made = Perplexity(num_samples=3).run(subject)
    texts = _texts.some(None, 3)
    assert made.metrics["bytes"] == sum(len(text.encode()) for text in texts) and len(texts) == 3
    first = Perplexity(data=rows, num_samples=1).run(subject)
    assert first.metrics["bytes"] == len(TEXTS[0].encode())
    (tmp_path / "empty.jsonl").write_text(json.dumps({"text": ""}))
    with pytest.raises(DataError, match="has no text that has a token to ask for"):
        Perplexity(data=str(tmp_path / "empty.jsonl")).run(subject)
