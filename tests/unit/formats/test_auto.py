"""The format is chosen by what a row holds, always the same way."""

import itertools

import pytest

from tunesmith.component import name_of
from tunesmith.errors import DataError
from tunesmith.formats.auto import Auto, choose

SUM = "Two and two is 4.\n#### 4"


def row_of(columns: str, **values: object) -> dict:
    return {column: "x" for column in columns.split()} | values


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (row_of("instruction input output"), "alpaca"),
        (row_of("messages tools"), "messages"),
        (row_of("conversations"), "sharegpt"),
        (row_of("text"), "text"),
        (row_of("instruction text"), "text"),
        (row_of("instruction output text"), "alpaca"),
        (row_of("conversations messages text"), "messages"),
        (row_of("conversations text"), "sharegpt"),
        (row_of("instruction messages output"), "alpaca"),
        (row_of("conversation"), "xtuner"),
        (row_of("instruction instances is_classification"), "seed_tasks"),
        (row_of("conversations chosen"), "sharegpt"),
        (row_of("conversations chosen rejected"), "pairs"),
        (row_of("prompt chosen rejected messages score"), "pairs"),
        (row_of("instruction input output chosen rejected"), "pairs"),
        (row_of("messages", label=True), "labelled"),
        (row_of("conversations", label=0), "labelled"),
        (row_of("prompt completion", label="false"), "labelled"),
        (row_of("instruction input output", label=None), "labelled"),
        (row_of("messages", label="travel"), "messages"),
        (row_of("instruction output", label=3), "alpaca"),
        (row_of("text", label=3), "classes"),
        (row_of("text label"), "classes"),
        (row_of("text messages", label=True), "labelled"),
        (row_of("text messages", label=3), "messages"),
        (row_of("question answer"), "qa"),
        (row_of("question", answer=SUM), "gsm8k"),
        (row_of("Question Answer URL") | {"Focus (Drug)": "x", "Question Type": "x"}, "qa"),
        (row_of("Question Answer text"), "qa"),
        (row_of("prompt completion"), "qa"),
        (row_of("problem solution messages"), "messages"),
        (row_of("Question A B C D Answer") | {"": 0}, "choices"),
        (row_of("id question A B C D answer explanation"), "choices"),
        (row_of("question subject answer", choices=["a", "b"]), "choices"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value,
)
def test_the_format_of_a_row(row, name):
    for order in itertools.islice(itertools.permutations(row), 0, None, 7):
        assert name_of(choose({column: row[column] for column in order})) == name


def test_a_row_is_read_by_the_chosen_format():
    assert Auto().read({"text": "x"}).is_document


def test_columns_that_fit_no_format_are_told_with_the_nearest_ones():
    with pytest.raises(DataError) as caught:
        choose({"Instruction": "x", "Input": "y", "Result": "z"})
    assert str(caught.value) == (
        "no format fits the columns Instruction, Input, Result. The nearest: alpaca (instruction, output); "
        "seed_tasks (instruction, instances). Rename columns with `columns:`, as in "
        "{instruction: Question, output: Answer}"
    )


def test_columns_that_no_format_has_are_told_with_all_formats():
    with pytest.raises(DataError, match=r"the columns a, b\. Known: alpaca, choices, classes, gsm8k, labelled, "):
        choose({"a": 1, "b": 2})


def test_many_columns_are_not_all_listed():
    with pytest.raises(DataError, match=r"c10, c11, \.\.\.\. Known"):
        choose({f"c{number:02}": 1 for number in range(40)})


def test_an_empty_row_fits_nothing():
    with pytest.raises(DataError, match="no format fits the columns none\\. Known"):
        choose({})
