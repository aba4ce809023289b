"""The hint that ends a message, and the reason that rows with the same fault share."""

import pickle

import pytest

from tunesmith.errors import DataError, Skipped, near


def test_near_names_are_offered_and_else_the_first_few():
    assert near("lerning_rate", ["seed", "learning_rate"]) == "Did you mean 'learning_rate'?"
    assert near("x", ["seed", "learning_rate"]) == "Known: learning_rate, seed."
    assert near("x", map(str, range(10, 30))).endswith("20, 21 and 8 others.")
    numbers = near("29xyzw", map(str, range(10, 30)))
    assert numbers.startswith("Known: 29, 10, 11, ")  # the likeliest first, and then in order
    assert near("LORA", ["full", "lora"]) == "Did you mean 'lora'?"


def test_a_name_with_a_line_break_does_not_split_the_line():
    assert near("x", ["first\nname", "second"]) == r"Known: 'first\nname', second."
    assert near("first name", ["first\nname"]) == r"Did you mean 'first\nname'?"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "column 'a' must be text and is a number (7); the row has the columns a",
            "column 'a' must be text and is a number",
        ),
        ("messages[12].content is missing; messages[12] has the keys role", "messages[].content is missing"),
        ("one thing. Another thing", "one thing"),
        ("x" * 200, "x" * 80),
    ],
)
def test_the_reason_of_an_error_is_its_beginning_without_values(message, reason):
    assert DataError(message).reason == reason
    assert str(DataError(message)) == message


def test_a_reason_of_its_own_outlives_a_process():
    for error in (DataError("the value 7 is wrong", "a wrong value"), Skipped("labelled bad (only: good)")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.reason) == (type(error), str(error), error.reason)
    assert Skipped("labelled bad (only: good)").reason == "labelled bad (only: good)"
