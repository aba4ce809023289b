"""Pairs: the prompt is found wherever it stands, and the answers alone are learned."""

import json

import pytest

from tunesmith.errors import DataError
from tunesmith.formats.pairs import Pairs
from tunesmith.types import Message, Sample

Q = {"role": "user", "content": "q"}
A, B = {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}
PLAIN = Sample(((Message("user", "q"), Message("assistant", "a")), (Message("user", "q"), Message("assistant", "b"))))


def gpt(text: str) -> dict:
    return {"from": "gpt", "value": text}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"question": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [Q], "chosen": [A], "rejected": [B]},
        {"prompt": [Q], "chosen": A, "rejected": B},
        {"prompt": "q", "chosen": [A], "rejected": B},
        {"chosen": [Q, A], "rejected": [Q, B]},
        {"prompt": "q", "messages": [Q, A], "chosen": [Q, A], "rejected": [Q, B]},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": gpt("a"), "rejected": gpt("b")},
        {"messages": [Q], "chosen": A, "rejected": B},
        {"messages": [Q], "chosen": "a", "rejected": gpt("b")},
        {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
        {"prompt": json.dumps([Q]), "chosen": json.dumps([A]), "rejected": json.dumps([B])},
    ],
    ids=lambda row: json.dumps(row)[:60],
)
def test_a_prompt_and_its_answers_in_every_shape(row):
    assert Pairs().read(row) == PLAIN


def test_instruction_and_input_are_joined_after_the_history():
    row = {"instruction": "q", "input": "i", "history": [["h", "g"]], "chosen": "a", "rejected": "b", "system": "s"}
    for branch, last in zip(Pairs().read(row).branches, "ab", strict=True):
        assert [turn.content for turn in branch] == ["s", "h", "g", "q\ni", last]
        assert [turn.weight for turn in branch] == [0, 0, 0, 0, 1]


def test_only_the_answers_are_learned_even_where_the_prompt_says_otherwise():
    prompt = [Q | {"train": True}, A | {"train_spans": [[0, 1]]}, Q]
    branches = Pairs().read({"prompt": prompt, "chosen": [A, Q, A], "rejected": [B | {"train": 0.5}]}).branches
    assert [[turn.weight for turn in branch] for branch in branches] == [[0, 0, 0, 1, 0, 1], [0, 0, 0, 0.5]]
    assert all(turn.spans is None for branch in branches for turn in branch)


def test_the_common_beginning_of_whole_conversations_is_their_prompt():
    chosen, rejected = [Q, A, Q, A], [Q, A, Q, B]
    first, second = Pairs().read({"chosen": chosen, "rejected": rejected}).branches
    assert [turn.weight for turn in first] == [turn.weight for turn in second] == [0, 0, 0, 1]


def test_equal_answers_are_read_and_left_to_the_objective():
    first, second = Pairs().read({"chosen": [Q, A], "rejected": [Q, A]}).branches
    assert first == second and first[-1].weight == 1
    assert len(Pairs().read({"prompt": "q", "chosen": "a", "rejected": "a"}).branches) == 2


def test_a_conversation_that_goes_on_after_the_other_ends_has_an_answer():
    first, second = Pairs().read({"chosen": [Q, A], "rejected": [Q, A, Q, B]}).branches
    assert [turn.weight for turn in first] == [0, 1] and [turn.weight for turn in second] == [0, 1, 0, 1]


def test_an_answer_that_is_json_is_a_text():
    for said in ('[{"a": 1}]', '{"role": "user", "content": "x"}', "[1]", "[", '[{"role": "x"}]'):
        assert Pairs().read({"prompt": "q", "chosen": said, "rejected": "b"}).branches[0][1].content == said


@pytest.mark.parametrize(("only", "text"), [("chosen", "a"), ("rejected", "b")])
def test_one_answer_may_be_read_as_an_ordinary_conversation(only, text):
    read_as = Pairs(only=only)
    (branch,) = read_as.read({"prompt": [Q, A, Q], "chosen": "a", "rejected": "b"}).branches
    assert read_as.branches() == ("answer",) and Pairs().branches() == ("chosen", "rejected")
    assert branch[-1].content == text
    assert [turn.weight for turn in branch] == [0, 1, 0, 1]
    with pytest.raises(DataError, match=f"writes two answers, and `only: {only}` says one"):
        read_as.write(PLAIN)


def test_tools_and_the_system_message_are_of_both():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "system": "s", "tools": [{"name": "f"}]}
    sample = Pairs().read(row)
    assert [branch[0].content for branch in sample.branches] == ["s", "s"] and len(sample.tools) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "a", "rejected": "b"}, "column 'chosen' has no prompt: no prompt, messages, conversations or"),
        ({"chosen": [Q, A], "rejected": [B]}, "'chosen' and column 'rejected' have no beginning in common"),
        ({"chosen": [Q, A], "rejected": [Q | {"content": "p"}, A]}, "have no beginning in common"),
        ({"chosen": [Q, Q], "rejected": [Q, B]}, "column 'chosen' has no answer after what both"),
        ({"prompt": [Q, A], "chosen": "a", "rejected": "b"}, "column 'prompt' ends with an answer"),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "column 'chosen' is an empty list"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "column 'rejected' must be text, .* and is null"),
        ({"prompt": "q", "chosen": {"role": "bot"}, "rejected": "b"}, "chosen.role is 'bot'"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "column 'prompt' must be text, a message or .* a number"),
        ({"prompt": "q", "chosen": "a"}, "column 'rejected' is missing; .* .`columns: {rejected: NAME}`"),
    ],
)
def test_what_is_wrong_is_named(row, said):
    with pytest.raises(DataError, match=said):
        Pairs().read(row)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [Q, A, Q, A], "rejected": [Q, A, Q, B]},
        {"chosen": [Q, A], "rejected": [Q, A, Q, B]},
        {"chosen": [Q, A], "rejected": [Q, A]},
        {"prompt": [Q], "chosen": [A, Q, A], "rejected": [A, Q, B]},
        {"chosen": [{"role": "system", "content": "s"}, Q, A], "rejected": [{"role": "system", "content": "s"}, Q, B]},
        {"chosen": [Q, A, Q | {"content": "p"}, A], "rejected": [Q, A, Q, B]},
        {"chosen": [Q, Q | {"content": "p"}, A], "rejected": [Q, Q | {"content": "r"}, B]},
    ],
)
def test_a_written_pair_has_the_same_prompt(row):
    sample = Pairs().read(row)
    assert Pairs().read(Pairs().write(sample)) == sample


def test_a_margin_is_the_label_of_a_pair():
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "by": "1.5"}
    format_ = Pairs(margin="by")
    assert format_.labels() and not Pairs().labels() and not Pairs(margin="by", only="chosen").labels()
    assert format_.read(row).label == 1.5 and Pairs().read(row).label is None
    for wrong in (-1, "far", None, True, float("inf")):
        with pytest.raises(DataError, match="column 'by' must be a number of 0 or more"):
            format_.read(row | {"by": wrong})
    with pytest.raises(DataError, match="column 'by' is missing"):
        format_.read({name: value for name, value in row.items() if name != "by"})
