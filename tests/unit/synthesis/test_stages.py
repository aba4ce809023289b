"""The rules by which instructions and examples are dropped, each alone."""

import pytest

from tunesmith.synthesis.options import BANNED
from tunesmith.synthesis.prompts import Instance, Task
from tunesmith.synthesis.stages import CUT, rows, script, unfit

SEEDS = (Task("Sort the words.", (Instance("b a", "a b"),), False),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Name the longest river.", None),
        ("", "empty"),
        ("Name a river.", "under 4 words"),
        ("word " * 150, None),
        ("word " * 151, "over 150 words"),
        ("- Name the longest river.", "begins with punctuation"),
        ("Some tasks for you now:", "ends with a colon"),
        ("Назови самую длинную реку.", "another script than the seed tasks'"),
        ("Describe the image that follows.", "has a banned word"),
        ("Please, GO TO the shop.", "has a banned word"),
        ("Describe a profile of imagery.", None),  # words, not parts of words
    ],
)
def test_an_instruction_is_dropped_for_a_reason(text, reason):
    assert unfit(text, BANNED, {"LATIN"}) == reason


def test_the_rules_know_other_scripts():
    assert unfit("用一句话介绍这座城市。", BANNED, {"CJK"}) is None
    assert unfit("描述下面这张图片的内容。", BANNED, {"CJK"}) == "has a banned word"
    assert unfit("短句", BANNED, {"CJK"}) == "under 4 words"
    assert [script(text) for text in ("1. Été", "日本", "の", "нет", "42")] == ["LATIN", "CJK", "CJK", "CYRILLIC", ""]


def judged(text, classification=False, cut=False, most=5):
    entry = {"text": text, "classification": classification, "cut": cut}
    return list(rows(SEEDS, entry, most))


def test_examples_are_dropped_for_reasons():
    good = Instance("c b", "b c")
    parts = [("c b", "b c"), ("x", "x"), ("y", ""), ("z", "it is:"), ("b a", "a b"), ("c b", "b c"), ("d", "d!")]
    text = "\n".join(f"Example {n}\nInput: {i}\nOutput: {o}" for n, (i, o) in enumerate(parts, 1))
    assert [reason for _, reason in judged(text)] == [
        None, "the output is the input", "no output", "ends with a colon", "copied from a seed task", "said before",
        None,
    ]  # fmt: skip
    assert judged(text)[0][0] == good
    assert [reason for _, reason in judged(text, most=1)].count("more than max_instances") == 1
    assert judged(text, cut=True)[-1][1] == CUT


def test_two_answers_to_one_input_are_both_dropped():
    text = "Class label: yes\nInput: a\nClass label: no\nInput: a\nClass label: no\nInput: b"
    disputed = "other outputs for the same input"
    assert [reason for _, reason in judged(text, classification=True)] == [disputed, disputed, None]
    text = "Output: one\nOutput: two"  # nothing is asked twice where there is no input
    assert [reason for _, reason in judged(text)] == [None, None]


def test_an_answer_without_examples_is_counted():
    assert judged("I cannot.") == [(None, "no example in the answer")]
    assert judged("Sure, I", cut=True) == [(None, CUT)]
