"""Stop texts: nothing of one is given, wherever its tokens are cut, and nothing else is lost."""

import random

import pytest

import fixtures_models
from tunesmith.generate.text import Text


@pytest.fixture(scope="module")
def tokenizer():
    return fixtures_models.tiny_tokenizer()


def given(tokenizer, text, stop):
    made, pieces = Text(tokenizer, stop), []
    for token in tokenizer(text)["input_ids"]:
        pieces.append(made.add(token))
        if made.stopped:
            break
    return [*pieces, made.end()], made.stopped


@pytest.mark.parametrize(
    ("text", "stop", "left", "stopped"),
    [
        ("one two\nUser: three", ("\nUser:",), "one two", True),
        ("one two\nUse it", ("\nUser:",), "one two\nUse it", False),
        ("one two\nUse", ("\nUser:",), "one two\nUse", False),  # what was held back is given at the end
        ("aaab", ("aab",), "a", True),
        ("a. b! c", ("!", ". "), "a", True),  # the first in the text, not in the list
        ("grüße 🙂 end", ("🙂",), "grüße ", True),
    ],
)
def test_it_ends_before_a_stop_text(tokenizer, text, stop, left, stopped):
    pieces, ended = given(tokenizer, text, stop)
    assert "".join(pieces) == left and ended == stopped


def test_any_text_and_any_stop(tokenizer):
    source = random.Random(0)
    for _ in range(300):
        text = "".join(source.choices("ab \nü🙂", k=source.randint(1, 20)))
        stop = tuple("".join(source.choices("ab \nü🙂", k=source.randint(1, 3))) for _ in range(source.randint(0, 3)))
        pieces, ended = given(tokenizer, text, stop)
        places = [text.find(one) for one in stop if one in text]
        assert "".join(pieces) == text[: min(places)] if places else text
        assert ended == bool(places)
