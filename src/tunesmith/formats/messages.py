"""Rows of messages with role and content, as OpenAI and most chat templates have them."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.formats import _answers, _turns, _write
from tunesmith.formats._fields import Fields
from tunesmith.formats._tags import OPENAI
from tunesmith.seams import Format
from tunesmith.types import Sample


class Messages(Format):
    """A conversation as `messages` of `role` and `content`, with the row's `system` and `tools` if any.

    The roles are system, developer (which is the system message by its newer name), user, assistant and tool. A
    message may also have `tool_calls`, `tool_call_id`, `name`, `reasoning_content` (or `reasoning`, or `thinking`),
    and `train` (or `weight`): true, false or a number that says how much to learn the turn. Without it, assistant
    turns are learned and others are not. `train_spans`, lists of [start, end] or [start, end, weight], says which
    characters of the content are. Content may be text or parts; `images`, `videos` and `audios` of the row are paths
    that stand where the text has the mark `<image>`, `<video>` or `<audio>`. `tools`, like every list, may be its
    JSON text.

    ```yaml
    messages:
      - {role: system, content: You look things up.}
      - {role: user, content: "How warm is it in Oslo?"}
      - role: assistant
        content: null
        tool_calls: [{id: a1, type: function, function: {name: warmth, arguments: '{"city": "Oslo"}'}}]
      - {role: tool, tool_call_id: a1, content: "4"}
      - {role: assistant, content: It is 4 degrees., train: true}
    tools: [{type: function, function: {name: warmth, parameters: {type: object}}}]
    ```
    """

    required: ClassVar[tuple[str, ...]] = ("messages",)

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        fields = Fields(row)
        turns = _turns.turns(fields, "messages", OPENAI)
        return Sample((_answers.whole(fields, turns),), tools=_turns.tools(fields))

    def write(self, sample: Sample) -> dict[str, Any]:
        """The row of a conversation. Raises DataError."""
        _write.refuse("messages", sample, tools=True)
        row: dict[str, Any] = {"messages": _turns.written(sample.branches[0], OPENAI)}
        return _write.finished(self, sample, row)
