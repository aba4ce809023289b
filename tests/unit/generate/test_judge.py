"""Rows of answers are read as training reads them."""

from types import SimpleNamespace

import pytest
import torch

from tunesmith.cli.main import main
from tunesmith.formats.ranked import Ranked
from tunesmith.generate.judge import Answers, Judge, _asked, _ranked


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
    assert [turn.spoken() for turn in _asked({"prompt": "Hi"} | more)] == [{"role": "user", "content": "Hi"}]


def test_a_temperature_is_bounded_when_it_is_parsed(capsys):
    for text in ("-1", "nan", "inf", "101", "x"):
        assert main(["score", "run", "rows", f"--temperature={text}"]) == 2
        assert "must be a number from 0 to 100" in capsys.readouterr().err


def judged(self, rows, format_):
    """One token an answer, of which an empty one has none, and as its reward the length of its text."""
    for _, row in rows:
        (text,) = row["answers"]
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
