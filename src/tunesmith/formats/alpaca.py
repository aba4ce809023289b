"""Rows of instruction, input and output."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.errors import DataError
from tunesmith.formats._fields import Fields, described
from tunesmith.formats._turns import refuse_media
from tunesmith.seams import Format
from tunesmith.types import Message, Sample


class Alpaca(Format):
    """A question and its answer: `instruction` and `input` joined by a line end, and `output`.

    `input`, `system` and `history` (pairs of an earlier question and its answer) may be missing or empty.

    ```yaml
    instruction: Put these words in order of size.
    input: house, mouse, mountain
    output: mouse, house, mountain
    system: You answer briefly.
    history: [["Are you ready?", I am.]]
    ```
    """

    required: ClassVar[tuple[str, ...]] = ("instruction", "output")

    system: str | None = None
    """System message of the rows that have none of their own."""

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        fields = Fields(row)
        refuse_media(fields)
        parts = (fields.text("instruction"), fields.optional_text("input"))
        question = "\n".join(part for part in parts if part)
        answer = fields.text("output")
        system = fields.optional_text("system") or self.system
        turns = [Message("system", system)] if system else []
        for asked, answered in _pairs(fields):
            turns += [Message("user", asked), Message("assistant", answered)]
        return Sample(((*turns, Message("user", question), Message("assistant", answer)),))


def _pairs(row: Fields) -> list[tuple[str, str]]:
    pairs = []
    for number, pair in enumerate(row.optional_items("history")):
        if not isinstance(pair, list | tuple) or [type(part) for part in pair] != [str, str]:
            raise DataError(f"history[{number}] must be a pair of texts, question and answer, and is {described(pair)}")
        said = Fields({"0": pair[0], "1": pair[1]}, f"history[{number}]")
        pairs.append((said.text("0"), said.text("1")))
    return pairs
