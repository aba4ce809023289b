"""Rows of answers are read as training reads them."""

import pytest

from tunesmith.cli.main import main
from tunesmith.formats.ranked import Ranked
from tunesmith.generate.judge import Answers, _asked


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
