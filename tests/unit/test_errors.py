"""The hint that ends a message."""

from tunesmith.errors import near


def test_near_names_are_offered_and_else_the_first_few():
    assert near("lerning_rate", ["seed", "learning_rate"]) == "Did you mean 'learning_rate'?"
    assert near("x", ["seed", "learning_rate"]) == "Known: learning_rate, seed."
    assert near("x", map(str, range(10, 30))).endswith("20, 21, ....")


def test_a_name_with_a_line_break_does_not_split_the_line():
    assert near("x", ["first\nname", "second"]) == r"Known: 'first\nname', second."
    assert near("first name", ["first\nname"]) == r"Did you mean 'first\nname'?"
