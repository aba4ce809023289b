"""Multiple choice: the options are listed, and the right one is the answer."""

import pytest

from tunesmith.errors import DataError
from tunesmith.formats.choices import Choices

ROW = {"": 0, "Question": "q?", "A": "one", "B": "two", "C": "three", "D": "four", "Answer": "B"}
LISTED = "q?\nA. one\nB. two\nC. three\nD. four"


def read(row: dict, **options: object) -> tuple[object, object]:
    asked, answered = Choices(**options).read(row).branches[0]
    assert (asked.role, answered.role) == ("user", "assistant")
    return asked.content, answered.content


@pytest.mark.parametrize(("how", "answer"), [("letter", "B"), ("text", "two"), ("both", "B. two")])
def test_options_are_listed_under_the_question(how, answer):
    assert read(ROW, answer_with=how) == (LISTED, answer)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q?", "A": "one", "B": "two", "C": "three", "D": "four", "answer": "b", "explanation": ""},
        {"question": "q?", "subject": "s", "choices": ["one", "two", "three", "four"], "answer": 1},
        {"question": "q?", "choices": '["one", "two", "three", "four"]', "answer": "1"},
        {"question": "q?", "choices": ["one", "two", "three", "four"], "answer": " B "},
    ],
)
def test_other_shapes_are_the_same_row(row):
    assert Choices.fits(row) and read(row) == (LISTED, "B")


def test_a_row_may_have_fewer_or_more_options():
    assert read({**ROW, "C": "", "D": None})[0] == "q?\nA. one\nB. two"
    assert read({**ROW, "E": 5, "F": 6.5, "Answer": "F"}, answer_with="both")[1] == "F. 6.5"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Answer": "E"}, r"column 'Answer' must be a letter from A to D and is text \('E'\)"),
        ({"Answer": ""}, "must be a letter from A to D"),
        ({"Answer": "AB"}, "must be a letter from A to D"),
        ({"Answer": 1}, "must be a letter from A to D"),
        ({"Answer": None}, "and is null"),
        ({"B": ""}, "gives 1 options to choose from, and there must be 2 to 26"),
        ({"C": ["x"]}, "column 'C' must be text and is a list"),
        ({"Question": None}, "column 'Question' must be text and is null"),
        ({"choices": ["a", 2]}, r"column 'choices\[1\]' must be text"),
        ({"choices": ["a", "b"], "Answer": 2}, r"must be a letter from A to B and is a number \(2\)"),
        ({"choices": ["a", "b"], "Answer": True}, "must be a letter from A to B"),
        ({"choices": ["a", "b"], "Answer": -1}, "must be a letter from A to B"),
    ],
)
def test_what_is_wrong_is_named(change, said):
    with pytest.raises(DataError, match=said):
        Choices().read(ROW | change)
