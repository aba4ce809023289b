"""Ranked answers: in order whatever orders them, and ties are counted."""

import pytest

from tunesmith.errors import DataError, Skipped
from tunesmith.formats.auto import choose
from tunesmith.formats.pairs import Pairs
from tunesmith.formats.ranked import Ranked

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def order(row):
    sample = Ranked().read({"prompt": "q"} | row)
    assert all(
        branch[0].content == "q" and branch[0].weight == 0 and branch[1].weight == 1 for branch in sample.branches
    )
    return "".join(branch[1].content for branch in sample.branches)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({}, "abc"),
        ({"scores": [1, 3, 2]}, "bca"),
        ({"scores": [-1.5, 0.5, 0]}, "bca"),
        ({"ranks": [3, 1, 2]}, "bca"),
        ({"ranks": [1, 2, 3], "scores": None}, "abc"),
        ({"scores": "[1, 3, 2]"}, "bca"),  # as a table has it
    ],
)
def test_the_best_comes_first(beside, said):
    assert order({"answers": ["a", "b", "c"]} | beside) == said


def test_answers_are_written_as_those_of_pairs_are():
    pair = Pairs().read(
        {"messages": [Q], "chosen": [A], "rejected": {"role": "assistant", "content": "b"}, "system": "s"}
    )
    row = {"messages": [Q], "answers": [[A], {"role": "assistant", "content": "b"}], "system": "s"}
    assert Ranked().read(row) == pair
    assert Ranked().read(row | {"tools": [{"name": "f"}]}).tools[0]["function"] == {"name": "f"}
    assert Ranked().branches() == Pairs().branches()


@pytest.mark.parametrize(
    ("beside", "said", "ties"),
    [
        ({"scores": [2, 1, 2, 1]}, "ab", 2),
        ({"scores": [1, 1, 1, 3]}, "da", 2),
        ({"ranks": [2, 1, 2, 1.0]}, "ba", 2),
        ({"ranks": [4, 3, 2, 1]}, "dcba", 0),
    ],
)
def test_of_equally_good_answers_the_first_is_kept_and_the_others_are_counted(beside, said, ties):
    row = {"prompt": "q", "answers": ["a", "b", "c", "d"]} | beside
    assert order(row) == said
    assert Ranked().read(row).ties == ties


def test_rows_in_which_none_is_better_are_left_out_by_name():
    for row, reason in (
        ({"answers": ["a", "b"], "scores": [1, 1.0]}, "all answers are ranked the same"),
        ({"answers": ["a"]}, "fewer than two answers"),
        ({"answers": []}, "fewer than two answers"),
    ):
        with pytest.raises(Skipped) as caught:
            Ranked().read({"prompt": "q"} | row)
        assert caught.value.reason == reason


def test_the_best_alone_is_an_ordinary_conversation():
    read_as = Ranked(only="chosen")
    sample = read_as.read({"prompt": [Q, A, Q], "answers": ["a", "b"], "ranks": [2, 1]})
    (branch,) = sample.branches
    assert read_as.branches() == ("answer",) and sample.ties == 0
    assert [turn.weight for turn in branch] == [0, 1, 0, 1] and branch[-1].content == "b"


def test_auto_takes_answers_with_numbers_alone():
    row = {"question": "q", "answers": ["a", "b"]}
    assert type(choose(row | {"scores": [1, 2]})) is Ranked
    with pytest.raises(DataError, match="no format fits the columns question, answers"):  # all may be right
        choose(row)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answers": ["a", "b"], "prompt": None}, "column 'answers' has no prompt: no prompt, messages,"),
        ({"answers": ["a", "b"], "scores": [1]}, "column 'scores' has 1 numbers for 2 answers"),
        ({"answers": ["a", "b"], "scores": [1, "2"]}, r"column 'scores' must hold numbers and has text \('2'\)"),
        ({"answers": ["a", "b"], "ranks": [1, None]}, "column 'ranks' must hold numbers and has null"),
        ({"answers": ["a", "b"], "ranks": [1, True]}, "column 'ranks' must hold numbers and has a boolean"),
        ({"answers": ["a", "b"], "scores": [1, float("nan")]}, "column 'scores' must hold numbers and has a number"),
        ({"answers": ["a", "b"], "scores": 3}, "column 'scores' must be a list"),
        ({"answers": ["a", "b"], "scores": [1, 2], "ranks": [2, 1]}, "column 'ranks' stands beside scores"),
        ({"answers": ["a", 3]}, r"column 'answers\[1\]' must be text, a message or a list of messages"),
        ({"answers": ["a", [Q]]}, r"column 'answers\[1\]' begins with the role user"),
    ],
)
def test_what_is_wrong_is_named(row, said):
    with pytest.raises(DataError, match=said):
        Ranked().read({"prompt": "q"} | row)
