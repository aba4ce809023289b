"""What formats of conversations share: tools, tool calls, training weights, the system message."""

from collections.abc import Mapping
from typing import Any

from tunesmith.errors import DataError
from tunesmith.formats._fields import Fields, described, from_json
from tunesmith.types import Message

HEAVIEST = 1_000_000  # no turn weighs more: what does is a slip, or no number that a float holds
MEDIA = ("images", "videos", "audios")


def with_system(turns: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The turns after the row's system message, when it has one. Raises DataError when two of them differ."""
    if not system:
        return turns
    if not turns or turns[0].role != "system":
        return (Message("system", system), *turns)
    if turns[0].content != system:
        raise DataError(f"column 'system' ({system!r:.40}) and the conversation's own system turn differ; keep one")
    return turns


def refuse_media(row: Fields) -> None:
    """Raise DataError when a row has images, video or sound beside its text: they would be lost silently."""
    for column in MEDIA:
        if row.values.get(column):
            raise row.wrong(column, "is not empty, and only text is read")


def weight(turn: Fields) -> bool | float | None:
    """What `train`, or `weight` as OpenAI names it, says of a turn: a boolean or a weight."""
    for key in ("train", "weight"):
        value = turn.values.get(key)
        if value is None:
            continue
        if isinstance(value, bool):
            return value
        if not isinstance(value, int | float) or not 0 <= value <= HEAVIEST:
            raise turn.wrong(key, f"must be true, false or a number from 0 to {HEAVIEST:,} and is {described(value)}")
        return float(value)
    return None


def tools(row: Fields) -> tuple[Mapping[str, Any], ...]:
    """The row's `tools`, a list or its JSON text; a bare function gets the envelope that templates expect."""
    found = [dict(row.writable("tools", tool.values)) for tool in row.optional_objects("tools")]
    return tuple(
        {"type": "function", "function": tool} if "name" in tool and "function" not in tool else tool for tool in found
    )


def tool_call(call: Fields) -> Mapping[str, Any]:
    """One tool call as templates expect it: arguments that are an object's JSON text become the object."""
    inner = call.values.get("function", call.values)
    if not isinstance(inner, Mapping):
        raise call.wrong("function", f"must be an object and is {described(inner)}")
    function = Fields(inner, call.place)
    name = function.text("name")
    given = inner.get("arguments")
    arguments = {} if given in (None, "") else given
    parsed = from_json(arguments)
    if isinstance(parsed, Mapping):
        arguments = dict(parsed)
    elif not isinstance(arguments, str):
        raise function.wrong("arguments", f"must be an object or text and is {described(arguments)}")
    function.writable("arguments", arguments)
    found: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    identity = call.optional_text("id")
    return found if identity is None else {"id": identity, **found}
