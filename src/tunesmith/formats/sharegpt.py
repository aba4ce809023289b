"""Rows of conversations with from and value."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.formats import _answers, _turns, _write
from tunesmith.formats._fields import Fields
from tunesmith.formats._tags import Tags
from tunesmith.seams import Format
from tunesmith.types import Sample


class Sharegpt(Format):
    """A conversation as `conversations` of `from` and `value`, with the row's `system` and `tools` if any.

    A `function_call` whose value is the JSON of a call, or of a list of calls, becomes the assistant's tool
    call. A turn may have what a message has in the format `messages`, such as `train`, and `role` and `content`
    in place of `from` and `value`.

    ```yaml
    conversations:
      - {from: human, value: "How warm is it in Oslo?"}
      - {from: function_call, value: '{"name": "warmth", "arguments": {"city": "Oslo"}}'}
      - {from: observation, value: "4"}
      - {from: gpt, value: It is 4 degrees.}
    system: You look things up.
    tools: '[{"name": "warmth", "parameters": {"type": "object"}}]'
    ```
    """

    required: ClassVar[tuple[str, ...]] = ("conversations",)

    tags: Tags = Tags()
    """Other names of the keys and speakers."""

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        fields = Fields(row)
        turns = _turns.turns(fields, "conversations", self.tags)
        return Sample((_answers.whole(fields, turns),), tools=_turns.tools(fields))

    def write(self, sample: Sample) -> dict[str, Any]:
        """The row of a conversation. Raises DataError."""
        _write.refuse("sharegpt", sample, tools=True)
        row: dict[str, Any] = {"conversations": _turns.written(sample.branches[0], self.tags)}
        return _write.finished(self, sample, row)
