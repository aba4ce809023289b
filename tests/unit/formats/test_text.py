"""Text rows are documents."""

import pytest

from tunesmith.errors import DataError
from tunesmith.formats.text import Text


def test_a_text_is_a_document_that_is_trained():
    sample = Text().read({"text": " As it is.\n", "url": "x"})
    assert sample.is_document
    assert [(turn.content, turn.weight) for turn in sample.branches[0]] == [(" As it is.\n", 1.0)]


def test_an_empty_text_is_left_for_the_ledger_to_count():
    assert Text().read({"text": ""}).branches[0][0].content == ""


def test_a_text_that_is_none_is_refused():
    with pytest.raises(DataError, match="column 'text' must be text and is null; the row has the columns text"):
        Text().read({"text": None})
