"""Rows of instruction, input and output."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.formats import _answers, _turns, _write
from tunesmith.formats._fields import Fields
from tunesmith.seams import Format
from tunesmith.types import Message, Sample


class Alpaca(Format):
    """A question and its answer: `instruction` and `input` joined by a line end, and `output`.

    `input`, `system`, `tools` and `history` (pairs of an earlier question and its answer) may be missing or empty.

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
        turns = (*_answers.instruction(fields), Message("assistant", fields.text("output")))
        return Sample((_answers.whole(fields, turns, self.system),), tools=_turns.tools(fields))

    def write(self, sample: Sample) -> dict[str, Any]:
        """The row of a conversation of questions and answers in texts. Raises DataError."""
        _write.refuse("alpaca", sample, tools=True)
        system, pairs = _write.exchanges("alpaca", sample.branches[0])
        row: dict[str, Any] = {"instruction": pairs[-1][0], "input": "", "output": pairs[-1][1]}
        if system is not None:
            row["system"] = system
        if pairs[:-1]:
            row["history"] = pairs[:-1]
        return _write.finished(self, sample, row)
