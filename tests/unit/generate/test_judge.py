"""Rows of answers are read as training reads them."""

import json
from types import SimpleNamespace

import pytest
import torch

from fixtures_models import save_model
from fixtures_values import tiny_values
from tunesmith.cli.main import main
from tunesmith.errors import DataError
from tunesmith.formats.ranked import Ranked
from tunesmith.generate.judge import TOGETHER, Answers, Judge, _asked, _ranked, accounted, best_of, score


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "Hi", "system": "Be a pirate."},
        {"instruction": "Hi", "input": "more"},
        {"messages": [{"role": "user", "content": "Hi"}]},
    ],
)
def test_answers_are_read_as_ranked_ones(asked):
    row = asked | {"answers": ["a", "b"]}
    assert Answers().read(row).branches == Ranked().read(row).branches


@pytest.mark.parametrize("more", [{}, {"answers": ["a", "b"]}, {"chosen": "a", "rejected": "b"}])
def test_a_row_is_asked_with_and_without_answers(more):
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    turns, tools = _asked({"prompt": "Hi", "tools": [tool]} | more)
    assert [turn.spoken() for turn in turns] == [{"role": "user", "content": "Hi"}] and tools == (tool,)


def test_a_temperature_is_bounded_when_it_is_parsed(capsys):
    for text in ("-1", "nan", "inf", "101", "x"):
        assert main(["score", "run", "rows", f"--temperature={text}"]) == 2
        assert "must be a number from 0 to 100" in capsys.readouterr().err


def judged(self, rows, format_, first=True):
    """One token an answer, of which an empty one has none, and as its reward the length of its text."""
    for _, row in rows:
        (text,) = (one if isinstance(one, str) else one["content"] for one in row["answers"])
        kept = SimpleNamespace(branches=(SimpleNamespace(ids=torch.zeros(1), weight=torch.ones(1)),), dropped=None)
        yield (kept, torch.tensor([[float(len(text))]])) if text else (SimpleNamespace(dropped="empty answer"), None)


def test_an_answer_that_cannot_be_judged_leaves_the_others(monkeypatch):
    monkeypatch.setattr(Judge, "judged", judged)
    renderer = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids, **options: "text"))
    judge = Judge(None, renderer, ("reward",))
    found = _ranked(judge, "a:1", {"prompt": "Hi", "answers": ["a", "", "bcd"]})
    assert [(one["answer"], one["reward"]) for one in found["answers"]] == [(2, 3.0), (0, 1.0)]
    assert found["left_out"] == [{"answer": 1, "dropped": "empty answer"}]
    assert judge.rewards([{"role": "user", "content": "Hi"}], ["ab", ""]) == [2.0, float("-inf")]


def test_tools_and_calls_are_seen_by_the_model_and_its_judge():
    """What each is asked is what the row says: a judge that saw less would judge another conversation."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "2", "name": "add"},
    ]
    asked = []

    class Model:
        def sampled(self, messages, each, tools):
            asked.append((messages, tools))
            return iter([SimpleNamespace(text='[{"role": "user", "content": "x"}]')])

    class Reads(Judge):
        def judged(self, rows, format_, first=True):
            (sample,) = (format_.read(row) for _, row in rows)
            asked.append((list(sample.branches[0]), sample.tools))
            yield None, torch.tensor([[1.0]])

    best_of(Reads(None, None, ("reward",)), Model(), turns, 1, tools=(tool,))
    (told, tools), (read, seen) = asked
    assert told == turns and tools == seen == (tool,)
    assert [turn.spoken() for turn in read[:-1]] == turns and read[1].reasoning == "Hm."
    assert read[-1].role == "assistant" and read[-1].content == '[{"role": "user", "content": "x"}]'
    assert not any(turn.train for turn in read[:-1]) and read[-1].train is not False


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """What opens the judge of a folder of a tiny model with so many values."""

    def judge(labels, tokens=False):
        folder = tmp_path_factory.mktemp("judge")
        save_model(folder, tiny_values(labels=labels, tokens=tokens))
        return Judge.open(str(folder), "cpu")

    return judge


GOOD = {
    1: {"prompt": "Hi", "chosen": "a b", "rejected": "c d"},
    2: {"text": "the cat sat"},
    3: {"prompt": "Hi", "answers": ["a b", "c d"]},
}
BAD = {1: {"prompt": "Hi", "chosen": "a"}, 2: {"label": 1}, 3: {"prompt": "Hi", "answers": [7]}}


@pytest.mark.parametrize(("kind", "labels", "tokens"), [(1, 1, False), (2, 2, False), (2, 2, True), (3, 1, False)])
def test_a_bad_row_is_named_and_counted_wherever_it_stands(opened, tmp_path, kind, labels, tokens):
    """Also where rows that are looked at together begin with it; not where the file does."""
    judge, path = opened(labels, tokens), tmp_path / "rows.jsonl"
    bad = {TOGETHER: BAD[kind], TOGETHER + 3: BAD[kind]}
    good = GOOD[kind] | ({"label": 1} if (kind, tokens) == (2, False) else {})
    path.write_text("\n".join(json.dumps(bad.get(number, good)) for number in range(2 * TOGETHER)))
    said = []
    found = list(accounted(score(judge, str(path)), said.append))
    assert [one["where"] for one in found] == [f"{path}:{number + 1}" for number in range(2 * TOGETHER)]
    assert [number for number, one in enumerate(found) if "dropped" in one] == list(bad)
    assert said[0] == "32 rows read, 30 scored"
    assert said[1].startswith("2 dropped: ") and said[1].endswith(f"({path}:17, {path}:20)") and len(said) == 2
    path.write_text(json.dumps(good))
    assert list(accounted(score(judge, str(path)), said.append)) and len(said) == 2


def test_a_file_that_begins_with_a_bad_row_is_refused(opened, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(BAD[1]) + "\n" + json.dumps(GOOD[1]))
    with pytest.raises(DataError, match="chosen"):
        list(score(opened(1), str(path)))
