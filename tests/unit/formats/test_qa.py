"""Tables of questions and answers: the columns are found by their names, or said."""

import pytest

from tunesmith.errors import DataError
from tunesmith.formats.qa import Qa
from tunesmith.types import Message


def read(row: dict, **options: object) -> list[tuple[str, object, float]]:
    sample = Qa(**options).read(row)
    return [(turn.role, turn.content, turn.weight) for turn in sample.branches[0]]


PLAIN = [("user", "q", 0), ("assistant", "a", 1)]


@pytest.mark.parametrize(
    "columns",
    [
        ("Question", "Answer"), ("question", "response"), ("QUERY", "reply"), ("prompt", "completion"),
        ("problem", "solution"), ("instruction", "Output"), ("input", "target"), ("A_S_K", "An swer"),
    ],
)  # fmt: skip
def test_columns_are_found_by_well_known_names(columns):
    row = {columns[0]: "q", columns[1]: "a", "Section Title": 3, "URL": None}
    assert Qa.fits(row) and read(row) == PLAIN


def test_columns_may_be_said():
    row = {"frage": "q", "antwort": "a", "Answer": "other", "rolle": "s"}
    assert read(row, question="frage", answer="antwort") == PLAIN
    assert read(row, question="frage", answer="antwort", system="rolle") == [("system", "s", 0), *PLAIN]


@pytest.mark.parametrize("column", ["system", "System Prompt", "system_message"])
def test_a_system_message_is_found(column):
    assert read({"question": "q", "answer": "a", column: "s"})[0] == ("system", "s", 0)
    assert read({"question": "q", "answer": "a", column: None}) == PLAIN


def test_the_name_of_the_kind_outweighs_others():
    assert read({"prompt": "other", "question": "q", "answer": "a", "output": "other"}) == PLAIN


def test_messages_are_read_and_the_answer_alone_is_learned():
    prompt = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "q"}]
    found = read({"prompt": prompt, "completion": [{"role": "assistant", "content": "a"}]})
    assert found == [("user", "p", 0), ("assistant", "b", 0), *PLAIN]


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        (
            {"Prompt": "q", "Query": "q", "answer": "a"},
            {},
            r"the columns Prompt, Query may all hold the question: `columns: \{question: NAME\}` says which",
        ),
        (
            {"prompt": "q", "text": "a"},
            {},
            r"no column is named as answers are \(answer, .* columns prompt, text: `col",
        ),
        (
            {"frage": "q", "answer": "a"},
            {"question": "Frage"},
            "column 'Frage' is missing; the row has the columns frage",
        ),
        ({"question": "q", "answer": "a"}, {"system": "s"}, "column 's' is missing"),
        ({"question": "q", "answer": 4}, {}, r"column 'answer' must be text, .* and is a number \(4\)"),
    ],
)
def test_what_is_wrong_is_named(row, options, said):
    with pytest.raises(DataError, match=said):
        Qa(**options).read(row)


@pytest.mark.parametrize("row", [{"prompt": "q", "query": "q", "answer": "a"}, {"question": "q"}, {}, {"answer": "a"}])
def test_a_row_without_one_column_of_each_kind_does_not_fit(row):
    assert not Qa.fits(row)


def test_a_question_is_written_under_the_names_that_are_said():
    read_as = Qa(question="frage", answer="antwort")
    sample = read_as.read({"frage": "q", "antwort": "a", "system": "s"})
    assert sample.branches[0][0] == Message("system", "s")
    assert read_as.write(sample) == {"frage": "q", "antwort": "a", "system": "s"}
