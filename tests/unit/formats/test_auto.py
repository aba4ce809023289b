"""The format is chosen by the columns alone, always the same way."""

import itertools

import pytest

from tunesmith.component import name_of
from tunesmith.errors import DataError
from tunesmith.formats.auto import Auto, choose


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ("instruction input output", "alpaca"), ("messages tools", "messages"), ("conversations", "sharegpt"),
        ("text", "text"), ("instruction text", "text"), ("instruction output text", "alpaca"),
        ("conversations messages text", "messages"), ("conversations text", "sharegpt"),
        ("instruction messages output", "alpaca"),
    ],
)  # fmt: skip
def test_most_required_columns_win_and_then_the_name(columns, name):
    for order in itertools.permutations(columns.split()):
        assert name_of(choose(order)) == name


def test_a_row_is_read_by_the_chosen_format():
    assert Auto().read({"text": "x"}).is_document


def test_columns_that_fit_no_format_are_told_with_what_would():
    with pytest.raises(DataError) as caught:
        choose(["question", "answer"])
    said = str(caught.value)
    assert said.startswith("no format fits the columns answer, question. Known: alpaca (instruction, output); ")
    assert said.endswith("Rename columns with `columns:`, as in {instruction: Question, output: Answer}")


def test_many_columns_are_not_all_listed():
    with pytest.raises(DataError, match=r"c10, c11, \.\.\.\. Known"):
        choose([f"c{number:02}" for number in range(40)])


def test_an_empty_row_fits_nothing():
    with pytest.raises(DataError, match="no format fits the columns none\\. Known"):
        choose([])


def test_answers_to_compare_are_not_left_out_silently():
    with pytest.raises(
        DataError, match="chosen and rejected .* the format sharegpt leaves out; say `format: sharegpt`"
    ):
        choose(["conversations", "chosen", "rejected"])
    assert name_of(choose(["conversations", "chosen"])) == "sharegpt"
