"""Rows of answers are read as training reads them."""

import pytest

from tunesmith.formats.ranked import Ranked
from tunesmith.generate.judge import Answers


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
