"""Seed tasks: one example is a sample, several are refused."""

import pytest

from tunesmith.errors import DataError
from tunesmith.formats.seed_tasks import SeedTasks


def read(*instances: dict) -> list[tuple[str, object]]:
    sample = SeedTasks().read({"id": "1", "instruction": "Do.", "instances": list(instances)})
    return [(turn.role, turn.content) for turn in sample.branches[0]]


@pytest.mark.parametrize(("given", "asked"), [("x", "Do.\nx"), ("", "Do."), (None, "Do."), ("<noinput>", "Do.")])
def test_an_example_is_a_question_and_its_answer(given, asked):
    assert read({"input": given, "output": "a"}) == [("user", asked), ("assistant", "a")]


@pytest.mark.parametrize("number", [0, 2])
def test_another_number_of_examples_is_refused(number):
    with pytest.raises(DataError, match=f"column 'instances' has {number} examples, .* write a row for each") as caught:
        read(*[{"input": "", "output": "a"}] * number)
    assert caught.value.reason == "column 'instances' has another number of examples than one"


def test_what_is_wrong_in_an_example_is_named():
    with pytest.raises(DataError, match=r"instances\[0\].output is missing; instances\[0\] has the keys input"):
        read({"input": "x"})
