"""Rows of conversations with from and value."""

import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.errors import near
from tunesmith.formats import _turns
from tunesmith.formats._fields import Fields, from_json
from tunesmith.seams import Format
from tunesmith.types import Message, Sample

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "bing": "assistant",
    "chatgpt": "assistant", "function_call": "assistant", "system": "system", "observation": "tool",
    "tool": "tool",
}  # fmt: skip


class Sharegpt(Format):
    """A conversation as `conversations` of `from` and `value`, with the row's `system` and `tools` if any.

    A `function_call` whose value is the JSON of a call, or of a list of calls, becomes the assistant's tool
    call. A turn may have `train` (or `weight`) as in `messages`, and `tools` may be a list or its JSON text.

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

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        fields = Fields(row)
        _turns.refuse_media(fields)
        turns = tuple(_message(turn) for turn in fields.objects("conversations"))
        if not turns:
            raise fields.wrong("conversations", "is an empty list")
        turns = _turns.with_system(turns, fields.optional_text("system"))
        return Sample((turns,), tools=_turns.tools(fields))


def _message(turn: Fields) -> Message:
    speaker = turn.text("from")
    if speaker not in ROLES:
        raise turn.wrong("from", f"is {reprlib.repr(speaker)}. {near(speaker, ROLES)}")
    value = turn.text("value")
    calls = _calls(value, turn.place) if speaker == "function_call" else ()
    return Message(ROLES[speaker], "" if calls else value, train=_turns.weight(turn), tool_calls=calls)


def _calls(value: str, place: str) -> tuple[Mapping[str, Any], ...]:
    """The calls in a JSON text; none when it does not hold calls alone."""
    said = from_json(value)
    calls = said if isinstance(said, list) else [said]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return ()
    return tuple(_turns.tool_call(Fields(call, f"{place}.value")) for call in calls)
