"""What formats of conversations share: one turn and its inverse, tools, tool calls, weights, the system message."""

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.errors import DataError, near
from tunesmith.formats._fields import Fields, described, from_json
from tunesmith.formats._tags import OPENAI, Tags
from tunesmith.types import Message

HEAVIEST = 1_000_000  # no turn weighs more: what does is a slip, or no number that a float holds
REASONING = ("reasoning_content", "reasoning", "thinking")
PARTS = {"text", "image", "image_url", "audio", "audio_url", "input_audio", "video", "video_url"}


def turns(row: Fields, key: str, tags: Tags) -> tuple[Message, ...]:
    """The turns of a conversation in a list.

    Raises:
        DataError: one of them cannot be read, there is none, a second one is a system message, or a tool answers
            before anything was called.
    """
    found = tuple(message(turn, tags) for turn in row.objects(key))
    if not found:
        raise row.wrong(key, "is an empty list")
    systems = [number for number, turn in enumerate(found) if turn.role == "system"]
    place = f"{row.place}.{key}" if row.place else key
    if len(systems) > 1:
        raise DataError(
            f"{place}[{systems[1]}] is a second system message, and a conversation has one: join them into the first",
            "a second system message",
        )
    called = False
    for number, turn in enumerate(found):
        called = called or bool(turn.tool_calls)
        # a call may stand in the text of the turn before
        if turn.role == "tool" and not called and (number == 0 or found[number - 1].role not in ("assistant", "tool")):
            raise DataError(
                f"{place}[{number}] is the answer of a tool, and no turn before it calls one",
                "a tool answers before it is called",
            )
    return found


def message(turn: Fields, tags: Tags) -> Message:
    """One turn. Raises DataError."""
    who, what = tags.keys_of(turn.values)
    name = turn.text(who)
    if name not in tags.speakers:
        raise turn.wrong(who, f"is {reprlib.repr(name)}. {near(name, tags.speakers)}", "is no known role")
    speaker = tags.speakers[name]
    if len(turn.values) == 2 and speaker != "call" and type(turn.values.get(what)) is str:  # most turns, so be quick
        return Message(speaker, turn.text(what))
    if speaker == "call":
        said = turn.text(what)
        calls, speaker = _calls_in(said, f"{turn.place}.{what}"), "assistant"
        content: str | tuple[Mapping[str, Any], ...] = "" if calls else said
        reasoning = _reasoning(turn)
    else:
        calls, reasoning = _calls(turn), _reasoning(turn)
        silent = bool(calls) or reasoning is not None
        content = "" if silent and turn.values.get(what) is None else _content(turn, what)
    train, spans = _learned(turn, content)
    return Message(
        role=speaker,
        content=content,
        train=train,
        reasoning=reasoning,
        tool_calls=calls,
        tool_call_id=turn.optional_text("tool_call_id"),
        name=None if "name" in (who, what) else turn.optional_text("name"),
        spans=spans,
    )


def _reasoning(turn: Fields) -> str | None:
    return next((said for said in map(turn.optional_text, REASONING) if said is not None), None)


def _calls(turn: Fields) -> tuple[Mapping[str, Any], ...]:
    calls = turn.optional_objects("tool_calls")
    legacy = turn.values.get("function_call")
    if legacy is not None:
        if not isinstance(legacy, Mapping):
            raise turn.wrong("function_call", f"must be an object and is {described(legacy)}")
        calls = [*calls, Fields(legacy, f"{turn.place}.function_call")]
    return tuple(tool_call(call) for call in calls)


def _calls_in(value: str, place: str) -> tuple[Mapping[str, Any], ...]:
    """The calls in a JSON text; none when it does not hold calls alone."""
    said = from_json(value)
    calls = said if isinstance(said, list) else [said]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return ()
    return tuple(tool_call(Fields(call, place)) for call in calls)


def _content(turn: Fields, key: str) -> str | tuple[Mapping[str, Any], ...]:
    """Text, or parts when one of them is no text: a template for text alone can write joined texts."""
    if not isinstance(turn.values.get(key), list | tuple):
        return turn.text(key)
    parts = turn.objects(key)
    texts = []
    for part in parts:
        kind = part.text("type")
        if kind not in PARTS:
            raise part.wrong("type", f"is {reprlib.repr(kind)}. {near(kind, PARTS)}", "is no known kind of part")
        if kind == "text":
            texts.append(part.text("text"))
    if not parts:
        raise turn.wrong(key, f"must be text or a list of parts and is {described(parts)}")
    return "".join(texts) if len(texts) == len(parts) else tuple(dict(part.values) for part in parts)


def _learned(turn: Fields, content: Any) -> tuple[bool | float | None, tuple[tuple[int, int, float], ...] | None]:
    """What a turn says of its weight, and of the characters that are learned."""
    train, given = weight(turn), turn.values.get("train_spans")
    if given is None:
        return train, None
    spans = tuple(_span(turn, number, span) for number, span in enumerate(turn.items("train_spans")))
    if not spans:
        return False, None
    if train is False:
        raise turn.wrong("train_spans", "says what is learned of a turn that has `train: false`: keep one")
    if not isinstance(content, str):
        raise turn.wrong("train_spans", "counts the characters of a text, and the content is parts")
    ends = [0, *(end for _, end, _ in spans)]
    for number, (start, end, _) in enumerate(spans):
        if not ends[number] <= start < end <= len(content):
            raise turn.wrong(
                "train_spans",
                f"[{number}] is {start} to {end}: the spans must come in order, not overlap, and end by "
                f"{len(content)}, the length of the content",
                "must come in order, not overlap, and lie in the content",
            )
    return train, spans


def _span(turn: Fields, number: int, span: Any) -> tuple[int, int, float]:
    if isinstance(span, list | tuple) and [type(one) for one in span[:2]] == [int, int] and len(span) in (2, 3):
        heavy = span[2] if len(span) == 3 else 1.0
        if isinstance(heavy, int | float) and not isinstance(heavy, bool) and 0 <= heavy <= HEAVIEST:
            return span[0], span[1], float(heavy)
    raise turn.wrong(
        "train_spans", f"must have [start, end] or [start, end, weight] and has {described(span)} at {number}"
    )


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


def with_system(turns: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The turns after the row's system message, when it has one. Raises DataError when two of them differ."""
    if not system:
        return turns
    own = next((turn for turn in turns if turn.role == "system"), None)
    if own is None:
        return (Message("system", system), *turns)
    if own.content != system:
        raise DataError(
            f"column 'system' ({system!r:.40}) and the conversation's own system turn differ; keep one",
            "column 'system' and the conversation's own system turn differ",
        )
    return turns


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


def written(turns: Sequence[Message], tags: Tags) -> list[dict[str, Any]]:
    """The list that `turns` reads these messages of."""
    return [_written(turn, tags) for turn in turns]


def _written(turn: Message, tags: Tags) -> dict[str, Any]:
    content = turn.content if isinstance(turn.content, str) else [dict(part) for part in turn.content]
    row: dict[str, Any] = {tags.role_tag: tags.name_of(turn.role), tags.content_tag: content}  # type: ignore[arg-type]
    if turn.tool_calls and not content and tags != OPENAI:
        bare = [{**({"id": call["id"]} if "id" in call else {}), **call["function"]} for call in turn.tool_calls]
        row[tags.role_tag] = tags.name_of("call")
        row[tags.content_tag] = json.dumps(bare[0] if len(bare) == 1 else bare, ensure_ascii=False)
    elif turn.tool_calls:
        row["tool_calls"] = [dict(call) for call in turn.tool_calls]
    own = {
        "reasoning_content": turn.reasoning,
        "tool_call_id": turn.tool_call_id,
        "name": turn.name,
        "train": turn.train,
        "train_spans": None if turn.spans is None else [list(span) for span in turn.spans],
    }
    return row | {key: value for key, value in own.items() if value is not None}
