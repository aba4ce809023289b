"""An answer as what it says: reasoning, text and calls of tools, read while it comes, or whole.

How they are written is found by `answer_format.find`. A call is given when all of it has come. What begins as a call
and is none stays text; so the parts of an answer, however it is cut into pieces, are always the same.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.generate.answer_format import AnswerFormat, AsJson, Calls, Tagged

NAME = re.compile(r"[\w.-]+")
SCALAR = {"true": True, "false": False, "null": None, "none": None}  # as JSON and Python write them
_IN_JSON = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}]', re.DOTALL)  # of a text, also one without its end
_BLANK = re.compile(r"\s*")


class _More(Exception):
    """What has come may be the beginning of what is read."""


class _Other(Exception):
    """What has come is something else."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None  # where the model writes one


@dataclass(frozen=True, slots=True)
class Said:
    """What an answer says, or what one piece adds to it."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[Call, ...] = ()

    def __add__(self, other: "Said") -> "Said":
        return Said(self.reasoning + other.reasoning, self.content + other.content, self.calls + other.calls)

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


def parse(written: AnswerFormat, text: str, tools: Sequence[Mapping[str, Any]] = ()) -> Said:
    """What a whole answer says; calls are looked for where there are tools."""
    parser = Parser(written, tools)
    return parser.feed(text) + parser.end()


class Parser:
    """Reads one answer in pieces. `tools` are the ones that it may call: without any, no call is looked for."""

    def __init__(self, written: AnswerFormat, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._written = written
        self._calls = written.calls if tools else None
        self._tools = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
        self._text = ""  # what came and is not given
        self._last = False  # whether no more comes
        self._skip = ""  # a blank that the format writes, and that is dropped if it comes next
        self._opened = self._called = False  # whether text was given, and calls
        self._read = self._begin
        self._said = Said()

    def feed(self, text: str) -> Said:
        """What is certain with some more text."""
        self._text += text
        return self._found()

    def end(self) -> Said:
        """What is left when no more comes."""
        self._last = True
        return self._found()

    def _found(self) -> Said:
        self._said = Said()
        while self._unskipped() and self._read():
            pass
        return self._said

    def _unskipped(self) -> bool:
        """Drop the blank that is to come, as far as it has; whether something else has come."""
        while self._skip and self._text:
            same = self._text[0] == self._skip[0]
            self._skip = self._skip[1:] if same else ""
            self._text = self._text[same:]
        return bool(self._text)

    def _begin(self) -> bool:
        """Whether an answer begins with reasoning."""
        how = self._written.reasoning
        text = self._text.lstrip()
        if how is not None and how.open.startswith(text) and text != how.open and not self._last:
            return False
        if how is not None and text.startswith(how.open):
            self._text, self._skip = text.removeprefix(how.open), how.open_behind
            self._read = self._reason
        elif how is not None and how.begun:
            self._read = self._reason
        else:
            self._read = self._first
            if not self._written.lead.strip():
                self._skip = self._written.lead
        return True

    def _reason(self) -> bool:
        """Give reasoning up to its end."""
        how = self._written.reasoning
        assert how is not None
        place = self._text.find(how.close)
        if place < 0:
            self._give(len(self._text) - (0 if self._last else _held(self._text, how.close)), "reasoning")
            return False
        said = self._text[:place].removesuffix(how.close_before)
        self._give(len(said), "reasoning")
        self._text = self._text[place - len(said) + len(how.close) :]
        self._skip = how.close_behind
        self._read = self._first
        return True

    def _first(self) -> bool:
        """What stands before a text, or a call that nothing announces: only here."""
        lead = self._written.lead
        if lead.strip() and self._text.startswith(lead):
            self._text = self._text.removeprefix(lead)
        elif lead.strip() and lead.startswith(self._text) and not self._last:
            return False
        if self._calls is not None and self._calls.is_bare and self._tried(self._calls, "") is None:
            return False
        self._read = self._speak
        return True

    def _speak(self) -> bool:
        """Give text up to the next call."""
        calls, announced = self._calls, self._written.announces
        if calls is None or not (self._called or (announced + calls.open).strip()):
            self._give(len(self._text))
            return False
        trigger = next(iter((announced + calls.open).split()), "")
        place = self._text.find(trigger) if trigger else -1
        if place < 0:
            self._give(len(self._text) - (0 if self._last else _held(self._text, trigger)))
            return False
        try:
            call, end = self._call(calls, _literal(self._text, place, announced))
        except _More:
            self._give(len(self._text) if self._last else len(self._text[:place].rstrip()))
            return False
        except _Other:
            self._give(place + len(trigger))
            return True
        said = self._text[:place].removesuffix(self._written.before_calls)
        self._give(len(said))
        self._took(call, end - len(said))
        return True

    def _section(self) -> bool:
        """Another call behind one, or the end of the calls."""
        calls = self._calls
        assert calls is not None
        taken = self._tried(calls, calls.between)
        if taken is not False:
            return bool(taken)
        try:
            self._text = self._text[_literal(self._text, 0, calls.section_close) :]
        except _More:
            if not self._last:
                return False
        except _Other:
            pass
        self._read = self._speak
        return True

    def _tried(self, calls: Calls, literal: str) -> bool | None:
        """Give the call behind a literal at the beginning of the text: whether there is one; None: more must come."""
        try:
            self._took(*self._call(calls, _literal(self._text, 0, literal)))
        except _More:
            return False if self._last else None
        except _Other:
            return False
        return True

    def _took(self, call: Call, end: int) -> None:
        """Give a call that ends at a place."""
        calls = self._calls
        assert calls is not None
        self._said += Said(calls=(call,))
        self._text, self._called, self._opened = self._text[end:], True, False
        self._read = self._section if (calls.between + calls.section_close).strip() else self._speak

    def _give(self, end: int, part: str = "content") -> None:
        """Give the text up to a place; a blank that stands alone beside calls is none."""
        said = self._text[:end]
        beside = part == "content" and not self._opened and (self._called or end < len(self._text))
        if said.strip() or not beside:
            self._said += Said(reasoning=said) if part == "reasoning" else Said(content=said)
            self._opened = self._opened or part == "content"
        self._text = self._text[end:]

    def _call(self, calls: Calls, place: int) -> tuple[Call, int]:
        """The call at a place, and where it ends. Raises _More, _Other."""
        place = _literal(self._text, place, calls.open)
        if isinstance(calls.body, AsJson):
            value, place = _object(self._text, place)
            call = _from_json(calls.body, value)
            if calls.is_bare and call.name not in self._tools:
                raise _Other
        else:
            name, place = _name(self._text, place)
            if calls.is_bare and name not in self._tools:
                raise _Other
            place = _literal(self._text, place, calls.body.mid)
            if isinstance(calls.body, Tagged):
                given, place = self._tagged(self._text, place, calls.body, name)
            else:
                given, place = _object(self._text, place)
            call = Call(name, given)
        return call, _literal(self._text, place, calls.close, self._last)

    def _tagged(self, text: str, place: int, how: Tagged, name: str) -> tuple[dict[str, Any], int]:
        """Arguments each by itself. A text is as it is written; what the tool takes else is JSON."""
        shapes = self._tools.get(name, {}).get("properties", {})
        given: dict[str, Any] = {}
        close = how.close.split()[0]
        while True:
            try:
                start = _literal(text, place, how.open)
            except _Other:
                return given, place
            key, start = _name(text, start)
            start = _literal(text, start, how.mid_argument, behind=False)
            end = text.find(close, start)
            if end < 0:
                raise _More
            value = text[start:end].removeprefix(how.mid_argument[len(how.mid_argument.rstrip()) :])
            value = value.removesuffix(how.close[: len(how.close) - len(how.close.lstrip())])
            given[key] = _value(value, shapes.get(key, {}))
            place = _literal(text, end, how.close)


def _held(text: str, mark: str) -> int:
    """How much of the end of a text may be the beginning of a mark, with the blank before it."""
    for many in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-many:]):
            break
    else:
        many = 0
    rest = text[: len(text) - many]
    return many + len(rest) - len(rest.rstrip())


def _literal(text: str, place: int, literal: str, optional: bool = False, behind: bool = True) -> int:
    """Where a literal ends that stands at a place; any blanks will do for those in it and around it.

    An `optional` one may be cut off by the end of the text. Raises _More, _Other.
    """
    for chunk in literal.split():
        place = _blank(text, place)
        if text.startswith(chunk, place):
            place += len(chunk)
        elif not chunk.startswith(text[place:]):
            raise _Other
        elif optional:
            return len(text)
        else:
            raise _More
    return _blank(text, place) if behind else place


def _blank(text: str, place: int) -> int:
    found = _BLANK.match(text, place)
    return place if found is None else found.end()


def _name(text: str, place: int) -> tuple[str, int]:
    found = NAME.match(text, place)
    if place == len(text) or (found is not None and found.end() == len(text)):
        raise _More
    if found is None:
        raise _Other
    return found[0], found.end()


def _object(text: str, place: int) -> tuple[dict[str, Any], int]:
    """The JSON object at a place, and where it ends."""
    if place == len(text):
        raise _More
    if text[place] != "{":
        raise _Other
    depth = 0
    for found in _IN_JSON.finditer(text, place):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            try:
                return json.loads(text[place : found.end()], strict=False, parse_constant=_refused), found.end()
            except json.JSONDecodeError:
                raise _Other from None
    raise _More


def _refused(constant: str) -> Any:
    raise _Other


def _from_json(how: AsJson, value: dict[str, Any]) -> Call:
    name, given = _at(value, how.name), _at(value, how.arguments)
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError:
            raise _Other from None
    given = {} if given is None else given
    if not isinstance(name, str) or not isinstance(given, dict):
        raise _Other
    said = None if how.id is None else _at(value, how.id)
    return Call(name, given, said if isinstance(said, str) else None)


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _value(text: str, shape: Any) -> Any:
    """What a text says as an argument of a shape of JSON Schema."""
    kind = shape.get("type") if isinstance(shape, dict) else None
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return SCALAR.get(text.strip().lower(), text) if kind is not None else text
