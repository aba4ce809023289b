"""Classes: a text or a conversation, and the number of its class."""

import pytest
from pydantic import ValidationError

from tunesmith.errors import DataError
from tunesmith.formats.classes import Classes

NAMES = Classes(classes=("bad", "good", "7"))


@pytest.mark.parametrize(
    ("read_as", "label", "number"),
    [
        (Classes(), 0, 0), (Classes(), 12, 12), (Classes(), "3", 3), (Classes(), True, 1), (NAMES, "bad", 0),
        (NAMES, "good", 1), (NAMES, "7", 2), (NAMES, 1, 1), (NAMES, "1", 1),
    ],
)  # fmt: skip
def test_a_class_is_a_number_or_a_name(read_as, label, number):
    sample = read_as.read({"text": "x", "label": label})
    assert sample.label == float(number)
    assert sample.is_document and read_as.labels()


def test_a_text_may_be_a_conversation():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    sample = Classes().read({"text": turns, "label": 2, "system": "s"})
    assert [turn.content for turn in sample.branches[0]] == ["s", "q", "a"] and sample.label == 2.0


@pytest.mark.parametrize(
    ("read_as", "label", "said"),
    [
        (Classes(), "good", r"is text \('good'\), no class that is known. Say `classes: \[NAME, ...\]`"),
        (NAMES, "goood", "no class that is known. Did you mean 'good'"),
        (NAMES, 3, r"must be from 0 to 2 and is a number \(3\)"),
        (Classes(), -1, "must be from 0 to"),
        (Classes(), 1.5, r"must be the number or the name of a class and is a number \(1.5\)"),
        (Classes(), None, "and is null"),
    ],
)
def test_a_label_that_is_no_class_is_refused(read_as, label, said):
    with pytest.raises(DataError, match=said) as caught:
        read_as.read({"text": "x", "label": label})
    assert "goo" not in caught.value.reason


def test_a_name_stands_once():
    with pytest.raises(ValidationError, match="'a' stands twice"):
        Classes(classes=("a", "b", "a"))


def test_a_written_label_is_the_name_where_there_are_names():
    assert NAMES.write(NAMES.read({"text": "x", "label": 1})) == {"text": "x", "label": "good"}
    assert Classes().write(NAMES.read({"text": "x", "label": "good"})) == {"text": "x", "label": 1}
    with pytest.raises(DataError, match="holds the number of a class, and the label is 12.0"):
        NAMES.write(Classes().read({"text": "x", "label": 12}))


def test_a_list_of_classes_is_one_number_for_each_of_them():
    several = Classes(classes=("a", "b", "c"))
    for label in (["c", "a"], [2, 0], '["a", "c"]'):
        assert several.read({"text": "x", "label": label}).label == (1.0, 0.0, 1.0)
    assert several.read({"text": "x", "label": []}).label == (0.0, 0.0, 0.0)
    sample = several.read({"text": "x", "label": ["c"]})
    assert several.write(sample) == {"text": "x", "label": ["c"]}
    with pytest.raises(DataError, match="is a list of classes: say `classes:"):
        Classes().read({"text": "x", "label": [1]})
    with pytest.raises(DataError, match="no class that is known"):
        several.read({"text": "x", "label": ["d"]})
