"""Words with a class each, as rows and as characters of the text that they make."""

import pytest

from tunesmith.errors import DataError
from tunesmith.formats.tagged import Tagged

NAMED = Tagged(classes=("O", "B", "I"))


@pytest.mark.parametrize("tags", [["B", "I", "O"], [1, 2, 0], ["1", "2", "0"], '["B", "I", "O"]'])
def test_words_stand_in_the_text_with_their_classes(tags):
    sample = NAMED.read({"tokens": ["New", "York", "is"], "tags": tags})
    assert sample.branches[0][0].content == "New York is"
    assert sample.words == ((0, 3, 1), (4, 8, 2), (9, 11, 0))
    assert sample.is_document and sample.label is None and not NAMED.labels()


def test_words_may_follow_each_other_directly():
    sample = Tagged(joined_by="").read({"tokens": ["我", "在", "北京"], "tags": [0, 0, 1]})
    assert sample.branches[0][0].content == "我在北京"
    assert sample.words == ((0, 1, 0), (1, 2, 0), (2, 4, 1))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"tokens": ["a", "b"], "tags": [1]}, "'tags' are 1, and there are 2 words"),
        ({"tokens": ["a", ""], "tags": [1, 1]}, r"'tokens' must be a list of words and has text \(''\)"),
        ({"tokens": ["a", 3], "tags": [1, 1]}, r"must be a list of words and has a number \(3\)"),
        ({"tokens": ["a"], "tags": ["X"]}, r"'tags' is text \('X'\), no class that is known"),
        ({"tokens": ["a"], "tags": [3]}, r"must be from 0 to 2 and is a number \(3\)"),
        ({"tokens": ["a\ud83d"], "tags": [1]}, "'tokens' has half a character"),
    ],
)
def test_what_is_no_row_of_words_is_refused(row, says):
    with pytest.raises(DataError, match=says):
        NAMED.read(row)


def test_a_row_of_words_fits_and_a_count_of_tokens_does_not():
    assert Tagged.fits({"tokens": ["a"], "tags": [0], "id": 1})
    assert not Tagged.fits({"tokens": 17, "tags": ["news"], "text": "a"})
    assert not Tagged.fits({"tokens": ["a", "b"], "tags": ["news"]})


def test_names_are_written_where_there_are_some():
    row = {"tokens": ["New", "York"], "tags": ["B", "I"]}
    assert NAMED.write(NAMED.read(row)) == row
    assert Tagged().write(NAMED.read(row)) == {"tokens": ["New", "York"], "tags": [1, 2]}
