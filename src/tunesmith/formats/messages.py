"""Rows of messages with role and content, as OpenAI and most chat templates have them."""

import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.errors import near
from tunesmith.formats import _turns
from tunesmith.formats._fields import Fields, described
from tunesmith.seams import Format
from tunesmith.types import Message, Sample

ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "tool",
}  # fmt: skip


class Messages(Format):
    """A conversation as `messages` of `role` and `content`, with the row's `system` and `tools` if any.

    A message may also have `tool_calls`, `tool_call_id`, `name`, `reasoning_content` (or `reasoning`), and
    `train` (or `weight`): true, false or a number that says how much to learn the turn. Without it, assistant
    turns are learned and others are not. `tools`, like every list, may be its JSON text.

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
        _turns.refuse_media(fields)
        turns = tuple(_message(turn) for turn in fields.objects("messages"))
        if not turns:
            raise fields.wrong("messages", "is an empty list")
        turns = _turns.with_system(turns, fields.optional_text("system"))
        return Sample((turns,), tools=_turns.tools(fields))


def _message(turn: Fields) -> Message:
    role = turn.text("role")
    if role not in ROLES:
        raise turn.wrong("role", f"is {reprlib.repr(role)}. {near(role, ROLES)}")
    calls = turn.optional_objects("tool_calls")
    legacy = turn.values.get("function_call")
    if legacy is not None:
        if not isinstance(legacy, Mapping):
            raise turn.wrong("function_call", f"must be an object and is {described(legacy)}")
        calls = [*calls, Fields(legacy, f"{turn.place}.function_call")]
    reasoning = turn.optional_text("reasoning_content")
    if reasoning is None:
        reasoning = turn.optional_text("reasoning")
    silent = bool(calls) or reasoning is not None
    return Message(
        role=ROLES[role],
        content="" if silent and turn.values.get("content") is None else _content(turn),
        train=_turns.weight(turn),
        reasoning=reasoning,
        tool_calls=tuple(_turns.tool_call(call) for call in calls),
        tool_call_id=turn.optional_text("tool_call_id"),
        name=turn.optional_text("name"),
    )


def _content(turn: Fields) -> str | tuple[Mapping[str, Any], ...]:
    """Text, or parts when one of them is no text: a template for text alone can write joined texts."""
    if not isinstance(turn.values.get("content"), list | tuple):
        return turn.text("content")
    parts = turn.objects("content")
    texts = []
    for part in parts:
        if part.text("type") == "text":
            texts.append(part.text("text"))
    if not parts:
        raise turn.wrong("content", f"must be text or a list of parts and is {described(parts)}")
    return "".join(texts) if len(texts) == len(parts) else tuple(dict(part.values) for part in parts)
