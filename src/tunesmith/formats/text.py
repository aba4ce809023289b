"""Rows of plain text."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.errors import DataError
from tunesmith.formats import _write
from tunesmith.formats._fields import Fields
from tunesmith.seams import Format
from tunesmith.types import Message, Sample


class Text(Format):
    """A document, which no template wraps, in `text`; a line of a txt file is such a row.

    ```yaml
    text: The heron stands still. When a fish comes near, it does not.
    ```
    """

    required: ClassVar[tuple[str, ...]] = ("text",)

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        return Sample(((Message("text", Fields(row).text("text")),),))

    def write(self, sample: Sample) -> dict[str, Any]:
        """The row of a document. Raises DataError."""
        _write.refuse("text", sample, documents=True)
        if not sample.is_document:
            roles = ", ".join(turn.role for turn in sample.branches[0])
            raise DataError(f"the format text cannot hold a conversation ({roles})")
        (text,) = _write.texts_alone("text", sample.branches[0])
        return {"text": text}
