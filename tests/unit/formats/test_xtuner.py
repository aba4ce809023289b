"""XTuner rows: exchanges, of which the first has the system message."""

import pytest

from tunesmith.errors import DataError
from tunesmith.formats.xtuner import Xtuner


def one(**more: object) -> dict:
    return {"input": "q", "output": "a", **more}


def read(*exchanges: dict) -> list[tuple[str, object, float]]:
    sample = Xtuner().read({"conversation": list(exchanges)})
    return [(turn.role, turn.content, turn.weight) for turn in sample.branches[0]]


def test_every_exchange_is_a_question_and_an_answer():
    assert read(one(system="s"), one(input="p", system="s"), one(output="b", system="")) == [
        ("system", "s", 0), ("user", "q", 0), ("assistant", "a", 1), ("user", "p", 0), ("assistant", "a", 1),
        ("user", "q", 0), ("assistant", "b", 1),
    ]  # fmt: skip


def test_an_exchange_may_say_that_it_is_not_learned():
    assert [weight for *_, weight in read(one(output_with_loss=False), one(output_with_loss=True))] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("exchanges", "said"),
    [
        ([], "column 'conversation' is an empty list"),
        ([one(), one(system="s")], r"conversation\[1\].system \('s'\) is another system message than the first"),
        ([one(system="s"), one(system="t")], r"conversation\[1\].system"),
        ([{"input": "q"}], r"conversation\[0\].output is missing"),
        ([one(output_with_loss=0)], r"conversation\[0\].output_with_loss must be true or false and is a number"),
    ],
)
def test_what_is_wrong_is_named(exchanges, said):
    with pytest.raises(DataError, match=said):
        read(*exchanges)
