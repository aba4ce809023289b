"""Alpaca rows: what is joined, what comes first, and what is refused."""

import pytest

from tunesmith.errors import DataError
from tunesmith.formats.alpaca import Alpaca
from tunesmith.types import Message, Sample


def turns(row: dict, **options: object) -> list[tuple[str, str]]:
    (branch,) = Alpaca(**options).read(row).branches
    return [(turn.role, turn.content) for turn in branch]


@pytest.mark.parametrize(
    ("instruction", "given", "question"),
    [
        ("Add.", "1 and 2", "Add.\n1 and 2"),
        ("Add.", "", "Add."),
        ("Add.", None, "Add."),
        ("", "1 and 2", "1 and 2"),
    ],
)
def test_instruction_and_input_are_joined_by_a_line_end(instruction, given, question):
    row = {"instruction": instruction, "input": given, "output": "3"}
    assert turns(row) == [("user", question), ("assistant", "3")]


def test_input_may_be_missing():
    assert Alpaca().read({"instruction": "Add.", "output": "3"}) == Sample(
        ((Message("user", "Add."), Message("assistant", "3")),)
    )


@pytest.mark.parametrize(
    ("own", "option", "system"),
    [
        ("Be kind.", None, "Be kind."),
        ("Be kind.", "Be brief.", "Be kind."),
        ("", "Be brief.", "Be brief."),
        (None, None, None),
    ],
)
def test_a_row_has_its_own_system_message_or_the_option(own, option, system):
    row = {"instruction": "Add.", "output": "3", "system": own}
    first = [("system", system)] if system else []
    assert turns(row, system=option) == [*first, ("user", "Add."), ("assistant", "3")]


@pytest.mark.parametrize(
    "history", [[["q1", "a1"], ["q2", ""]], [("q1", "a1"), ("q2", "")], '[["q1", "a1"], ["q2", ""]]']
)
def test_history_comes_before_the_question(history):
    row = {"instruction": "q3", "output": "a3", "history": history, "system": "s"}
    assert turns(row) == [
        ("system", "s"),
        ("user", "q1"), ("assistant", "a1"),
        ("user", "q2"), ("assistant", ""),
        ("user", "q3"), ("assistant", "a3"),
    ]  # fmt: skip


@pytest.mark.parametrize("history", [None, "", []])
def test_history_may_be_empty(history):
    assert len(turns({"instruction": "q", "output": "a", "history": history})) == 2


def test_an_empty_answer_is_left_for_the_ledger_to_count():
    assert turns({"instruction": "q", "output": ""})[-1] == ("assistant", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"history": [["q"]]},
            r"history\[0\] must be a pair of texts, .*, and is a list \(\['q'\]\)",
        ),
        ({"history": [["q", "a"], ["q", 1]]}, r"history\[1\] must be a pair of texts"),
        (
            {"history": "early"},
            r"column 'history' must be a list \(or its JSON text\) and is text \('early'\)",
        ),
        (
            {"input": 3},
            r"column 'input' must be text and is a number \(3\); the row has the columns instruction, ",
        ),
        ({"output": "\ud83d"}, r"column 'output' has half a character \('\\ud83d'\)"),
        ({"images": ["a.png"]}, r"has 0 marks <image>, and column 'images' has 1 paths: each needs the other"),
    ],
)
def test_a_wrong_field_is_named(change, said):
    with pytest.raises(DataError, match=said):
        Alpaca().read({"instruction": "q", "output": "a", **change})


def test_a_missing_column_says_how_to_rename_one():
    with pytest.raises(DataError) as caught:
        Alpaca().read({"instruction": "q", "Answer": "a"})
    assert str(caught.value) == (
        "column 'output' is missing; the row has the columns instruction, Answer "
        "(`columns: {output: NAME}` says which one holds it)"
    )


def test_tools_and_pictures_stand_beside_the_question():
    row = {"instruction": "What is it?<image>", "output": "A heron.", "images": ["a.png"], "tools": [{"name": "look"}]}
    sample = Alpaca().read(row)
    picture = ({"type": "text", "text": "What is it?"}, {"type": "image", "path": "a.png"})
    assert sample.branches[0][0].content == picture
    assert sample.tools == ({"type": "function", "function": {"name": "look"}},)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([Message("user", "q")], "holds questions, each with its answer, and the roles are user$"),
        ([Message("system", "s")], "and the roles are none$"),
        ([Message("user", "q"), Message("user", "q"), Message("assistant", "a")], "are user, user, assistant"),
        ([Message("user", "q"), Message("assistant", "a", train=False)], "more of a turn than its text, .* assistant"),
        ([Message("user", "q"), Message("assistant", "", tool_calls=({},))], "cannot hold tool calls"),
        ([Message("user", ({"type": "image"},)), Message("assistant", "a")], "more of a turn than its text"),
        ([Message("system", ""), Message("user", "q"), Message("assistant", "a")], "would read as another one"),
    ],
)
def test_what_a_row_cannot_hold_is_not_written(turns, said):
    with pytest.raises(DataError, match=said):
        Alpaca().write(Sample((tuple(turns),)))


def test_an_option_that_adds_a_system_message_does_not_change_what_is_written():
    sample = Sample(((Message("user", "q"), Message("assistant", "a")),))
    assert Alpaca().write(sample) == {"instruction": "q", "input": "", "output": "a"}
    with pytest.raises(DataError, match="would read as another one"):
        Alpaca(system="Be brief.").write(sample)
