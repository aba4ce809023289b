"""What is asked shows the seed tasks, and every way to answer is taken apart into the same parts."""

import pytest

from tunesmith.synthesis import prompts
from tunesmith.synthesis.prompts import Instance, Task

SORT = Task("Sort the words.", (Instance("b a", "a b"),), False)
RHYME = Task("Write a\nrhyme.", (Instance("", "The cat\nsat."),), False)
MOOD = Task("Say the mood.", (Instance("What a day!", "good"),), True)


def test_the_list_is_numbered_and_goes_on():
    text, stop = prompts.more(["Sort the\n words:", "Say **hello**."], classification=False)
    assert text.endswith("\n\n1. Sort the words\n2. Say hello.\n3.") and "for 2 more" in text
    assert stop == "\n5."  # two were shown, two are asked for
    assert "label" not in text and "label" in prompts.more(["a"], classification=True)[0]


def test_a_kind_is_shown_and_asked():
    told = prompts.decide("Count the cats.", [SORT, MOOD])
    assert told.endswith("Task: Sort the words.\nNo\n\nTask: Say the mood.\nYes\n\nTask: Count the cats.\n")


def test_examples_are_shown_input_first_or_label_first():
    told = prompts.instances("Count the cats.", [SORT, RHYME], False, 3)
    assert "up to 3" in told
    assert told.endswith(
        "Task: Sort the words.\nExample 1\nInput: b a\nOutput: a b\n\n"
        "Task: Write a rhyme.\nExample 1\nOutput: The cat\nsat.\n\nTask: Count the cats.\n"
    )
    told = prompts.instances("Is it a cat?", [MOOD], True, 3)
    assert told.endswith("Task: Say the mood.\nClass label: good\nInput: What a day!\n\nTask: Is it a cat?\n")


@pytest.mark.parametrize(
    "text",
    [
        " Name a bird.\n4. Name a\n   fish.\n5. Count to 3.5 now.",  # a base model goes on behind the last number
        "3. Name a bird.\n4. Name a fish.\n5. Count to 3.5 now.",
        "3) Name a bird.\n\n4) **Name** a fish.\n\n**5.** Count to 3.5 now.\n",
        "１、Name a bird.\n２、Name a fish.\n３、Count to 3.5 now.",
    ],
)
def test_a_list_in_any_hand_is_the_same_list(text):
    assert prompts.instructions_in(text) == ["Name a bird.", "Name a fish.", "Count to 3.5 now."]


def test_opening_words_are_an_item_that_can_be_dropped():
    assert prompts.instructions_in("Here are some:\n1. Name a bird.") == ["Here are some:", "Name a bird."]
    assert prompts.instructions_in("1. Name a bird.\n2.") == ["Name a bird.", ""]
    assert prompts.instructions_in(" \n") == []


@pytest.mark.parametrize(
    ("text", "verdict"), [("Yes", True), ("no.", False), ("Answer: **No**, yes", False), ("Nope", None), ("", None)]
)
def test_a_verdict(text, verdict):
    assert prompts.verdict_in(text) is verdict


@pytest.mark.parametrize(
    "text",
    [
        "Example 1\nInput: b\na\nOutput: a\nb\n\nExample 2\nOutput: none here",
        "Sure!\n\n**Example 1**\n**Input:** b\na\n**Output:** a\nb\n\n### Example 2:\nInput: N/A\nOutput: none here\n",
        "Input: b\na\nOutput: a\nb\nOutput: none here",
        "Example 1: Input: b\na\nOutput 1: a\nb\nExample 2. Output：none here",
    ],
)
def test_examples_in_any_hand_are_the_same_examples(text):
    assert prompts.instances_in(text, False) == [Instance("b\na", "a\nb"), Instance("", "none here")]


def test_an_example_without_an_answer_is_none_and_others_stay():
    assert prompts.instances_in("Example 1\nfoo\nExample 2\nInput: a", False) == [None, None]
    assert prompts.instances_in("Input: a\nInput: b\nOutput: c", False) == [None, Instance("b", "c")]
    assert prompts.instances_in("I cannot.", False) == [] == prompts.instances_in("I cannot.", True)
    assert prompts.instances_in("Output: Examples are\ncats", False) == [Instance("", "Examples are\ncats")]


def test_labels_come_before_their_inputs():
    text = "Here:\nClass label: good\nInput: Nice\nday\n\n**Class Label:** bad\nRain.\nLabel 3: so\n"
    assert prompts.instances_in(text, True) == [
        Instance("Nice\nday", "good"),
        Instance("Rain.", "bad"),
        Instance("", "so"),
    ]
