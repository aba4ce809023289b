"""How a chat template writes the parts of an answer (its reasoning, its text, its calls of tools), found by asking it.

Conversations with marks for parts are written, and what stands around the marks is the format. Nothing is known of
single models: what a template can write of an answer, an answer can be read by (`generate.parse`).

A tokenizer may bring a `response_template` of transformers', and few do; it says nothing that the chat template does
not, and what it cannot read it loses, where here it stays text.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TemplateError
from tunesmith.templates._apply import Turns, apply, last_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING, SAID = "PROBEREASONING", "PROBECONTENT"
NAMES = ("probe_alpha", "probe_beta")
KEYS = ("first_key", "second_key")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
THINK = "<think>", "</think>"
PARTS = ("name", "arguments", "id")  # what a call says
TAG = re.compile(r"<[^<>\s]+>\s*$")
LONG_ID, SHORT_ID = 24, 9  # characters of the id of a call: some templates write no other than 9

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AsJson:
    """A call is a JSON object; the paths lead to what it says.

    `pieces` is the object as the template writes it, cut around what a call says: text, and between texts one of
    `PARTS`. Empty where it cannot be cut so, as arguments are JSON in a text.
    """

    name: Path
    arguments: Path
    id: Path | None = None
    pieces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Named:
    """A call is the name of the function and, behind `mid`, the JSON object of its arguments."""

    mid: str


@dataclass(frozen=True, slots=True)
class Tagged:
    """A call is the name and, behind `mid`, each argument by itself: `open` key `mid_argument` value `close`."""

    mid: str
    open: str
    mid_argument: str
    close: str


@dataclass(frozen=True, slots=True)
class Calls:
    """How calls stand in an answer: `section_open`, calls with `between` between them, `section_close`."""

    body: AsJson | Named | Tagged
    section_open: str = ""
    open: str = ""
    close: str = ""
    between: str = ""
    section_close: str = ""
    several: bool = True  # whether an answer can have more than one
    id_characters: int = LONG_ID

    @property
    def is_bare(self) -> bool:
        """Whether nothing tells that a call begins."""
        return not (self.section_open + self.open).strip()


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How reasoning stands before what is said: `open` and `close`, and the blanks around them."""

    open: str
    close: str
    open_behind: str = ""
    close_before: str = ""
    close_behind: str = ""
    begun: bool = False  # whether the prompt ends with `open`


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How the parts of an answer are written. Without a chat template it is text alone."""

    lead: str = ""  # what stands before what is said, mostly a blank or nothing
    reasoning: Reasoning | None = None
    calls: Calls | None = None
    before_calls: str = ""  # what stands between what is said and the first call, mostly a blank
    special: frozenset[str] = frozenset()  # special tokens that the format itself is written with

    @property
    def announces(self) -> str:
        """What tells that a call begins behind a text; empty where nothing does."""
        calls = self.calls
        if calls is None:
            return ""
        said = self.before_calls if calls.is_bare else ""
        return said + calls.section_open

    @property
    def marks(self) -> str:
        """All that is written around the parts."""
        found = self.lead + ("" if self.reasoning is None else self.reasoning.open + self.reasoning.close)
        calls = self.calls
        if calls is not None:
            found += (
                self.before_calls + calls.section_open + calls.open + calls.close + calls.between + calls.section_close
            )
            for part in ("mid", "open", "mid_argument", "close"):
                found += getattr(calls.body, part, "")
        return found


def find(tokenizer: "PreTrainedTokenizerBase") -> AnswerFormat:
    """The format of the answers that a tokenizer's chat template writes."""
    probe = _Probe(tokenizer)
    plain = probe.written({"content": SAID}) if tokenizer.chat_template else None
    if plain is None or SAID not in plain[0]:
        return AnswerFormat()
    reasoning = _reasoning(probe)
    before, _, tail = _behind(reasoning, plain[0]).partition(SAID)
    calls = _calls(probe, reasoning, tail)
    found = AnswerFormat(before, reasoning, calls, _before_calls(probe, calls))
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return replace(found, special=frozenset(one for one in special if one in found.marks))


class _Probe:
    """A question, and what a template writes behind it."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        parameters = {"type": "object", "properties": {key: {"type": "string"} for key in KEYS}}
        self._tools = tuple(
            {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}
            for name in NAMES
        )

    def written(self, answer: Mapping[str, Any]) -> tuple[str, str] | None:
        """The text of an answer to the question, and the prompt for it; None where the template refuses it."""
        turns: Turns = [{"role": "user", "content": "probe question"}]
        try:
            prompt = apply(self.tokenizer, turns, self._tools, prompt=True)
            text = apply(self.tokenizer, [*turns, {"role": "assistant", **answer}], self._tools)
        except TemplateError:
            return None
        return text[len(os.path.commonprefix([prompt, text])) :], prompt


def _reasoning(probe: _Probe) -> Reasoning | None:
    """How reasoning is written, None where it is not."""
    for key in REASONING_KEYS:
        found = probe.written({"content": SAID, key: REASONING})
        if found is None:
            continue
        text, prompt = found
        place, end = text.find(REASONING), text.find(SAID)
        if 0 <= place < end:
            before, behind = text[:place], _close(probe, key, text[place + len(REASONING) : end])
            opening = before.strip() or _ending_tag(prompt)
            if not opening or not behind.strip():
                return None
            blank = before or prompt
            return Reasoning(
                opening,
                behind.strip(),
                blank[len(blank.rstrip()) :],
                behind[: len(behind) - len(behind.lstrip())],
                behind[len(behind.rstrip()) :],
                prompt.rstrip().endswith(opening),
            )
    if THINK[1] in str(probe.tokenizer.chat_template):  # it takes thoughts out of the text, and writes none
        prompt = (probe.written({"content": SAID}) or ("", ""))[1]
        return Reasoning(*THINK, "\n", "\n", "\n\n", prompt.rstrip().endswith(THINK[0]))
    return None


def _close(probe: _Probe, key: str, behind: str) -> str:
    """What ends reasoning, of what stands between it and a text: it ends it before a call too."""
    for characters in (LONG_ID, SHORT_ID):
        found = probe.written({"content": "", key: REASONING, "tool_calls": [_call(0, characters)]})
        if found is not None and REASONING in found[0]:
            return os.path.commonprefix([behind, found[0].partition(REASONING)[2]])
    return behind


def _ending_tag(prompt: str) -> str:
    found = TAG.search(prompt)
    return found[0].strip() if found else ""


def _behind(reasoning: Reasoning | None, text: str) -> str:
    """An answer without the empty reasoning that a template may write before it."""
    if reasoning is None or not (reasoning.begun or text.lstrip().startswith(reasoning.open)):
        return text
    _, found, behind = text.partition(reasoning.close)
    return behind.removeprefix(reasoning.close_behind) if found else text


def _call(number: int, id_characters: int) -> dict[str, Any]:
    """The call of a probe; each of its texts stands nowhere else."""
    given = {key: f"value {place} of {number}" for place, key in enumerate(KEYS)}
    function = {"name": NAMES[number], "arguments": given}
    return {"id": f"abc{number}".ljust(id_characters, "x"), "type": "function", "function": function}


def _calls(probe: _Probe, reasoning: Reasoning | None, tail: str) -> Calls | None:
    """How calls are written, None where they are not, or in a way that is not understood."""
    for number, characters in ((2, LONG_ID), (2, SHORT_ID), (1, LONG_ID), (1, SHORT_ID)):
        calls = [_call(place, characters) for place in range(number)]
        found = probe.written({"content": "", "tool_calls": calls})
        if found is None or any(call["function"]["name"] not in found[0] for call in calls):
            continue
        text = _ended(probe, _behind(reasoning, found[0]).lstrip(), tail)
        bodies = [_body(text, calls, place) for place in range(number)]
        if any(body is None for body in bodies):
            return None
        return _divided(text, [body for body in bodies if body is not None], characters)
    return None


def _ended(probe: _Probe, text: str, tail: str) -> str:
    """An answer without the token that ends its turn."""
    if tail.strip() and text.endswith(tail):
        return text.removesuffix(tail)
    text = text.rstrip()
    return text.removesuffix(last_token(text, probe.tokenizer)).rstrip()


Body = tuple[int, int, AsJson | Named | Tagged]  # from, to behind, and how it is written


def _body(text: str, calls: list[dict[str, Any]], number: int) -> Body | None:
    """Where a call stands in the text of an answer, and how it is written."""
    call = calls[number]
    name, given = call["function"]["name"], call["function"]["arguments"]
    other = [one["function"]["name"] for place, one in enumerate(calls) if place != number]
    for start, end, value in _objects(text):
        paths = AsJson(_path(value, name) or (), _path(value, given) or (), _path(value, call["id"]))
        if paths.name and paths.arguments and not any(one in text[start:end] for one in other):
            return start, end, replace(paths, pieces=_pieces(text[start:end], call))
    at = text.find(name)
    for start, end, value in _objects(text):
        if start > at and value == given:
            return at, end, Named(text[at + len(name) : start])
    return _tagged(text, at, name, given)


def _objects(text: str) -> Iterator[tuple[int, int, Any]]:
    """The JSON objects in a text, the outer before the inner."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"\{", text):
        try:
            value, end = decoder.raw_decode(text, found.start())
        except json.JSONDecodeError:
            continue
        yield found.start(), end, value


def _path(value: Any, wanted: Any) -> Path | None:
    """The keys that lead to a value in nested objects."""
    if not isinstance(value, dict):
        return None
    for key, inner in value.items():
        if inner == wanted or (isinstance(inner, str) and isinstance(wanted, dict) and inner == json.dumps(wanted)):
            return (key,)
        deeper = _path(inner, wanted)
        if deeper is not None:
            return (key, *deeper)
    return None


def _pieces(text: str, call: Mapping[str, Any]) -> tuple[str, ...]:
    """The JSON object of a call, cut around its name, its arguments and its id."""
    name, given = json.dumps(call["function"]["name"]), call["function"]["arguments"]
    own = next(((start, end) for start, end, value in _objects(text) if value == given), None)
    if own is None:
        return ()
    spans = {"arguments": own}
    for part, written in (("name", name), ("id", json.dumps(call["id"]))):
        if (at := text.find(written)) >= 0:
            spans[part] = at, at + len(written)
    found, place = list[str](), 0
    for part in sorted(spans, key=lambda one: spans[one]):
        found += [text[place : spans[part][0]], part]
        place = spans[part][1]
    return (*found, text[place:])


def _tagged(text: str, at: int, name: str, given: dict[str, Any]) -> Body | None:
    places = [text.find(part, at) for pair in given.items() for part in pair]
    if at < 0 or -1 in places or places != sorted(places):
        return None
    (key, value), (other_key, other) = given.items()
    first, first_end = places[0], places[1] + len(value)
    mid_argument = text[first + len(key) : places[1]]
    if mid_argument != text[places[2] + len(other_key) : places[3]] or not mid_argument.strip():
        return None
    before, between = text[at + len(name) : first], text[first_end : places[2]]
    opening = _common_end(before, between)
    close = between[: len(between) - len(opening)]
    end = places[3] + len(other)
    close = os.path.commonprefix([close, text[end:]])
    if not close.strip() or close.strip().startswith('"'):  # quoted: how others than texts are written is not known
        return None
    return at, end + len(close), Tagged(before[: len(before) - len(opening)], opening, mid_argument, close)


def _common_end(one: str, other: str) -> str:
    return os.path.commonprefix([one[::-1], other[::-1]])[::-1]


def _divided(text: str, bodies: list[Body], id_characters: int) -> Calls:
    """What stands around calls, divided into what belongs to each and to all."""
    start, end = text[: bodies[0][0]], text[bodies[-1][1] :]
    if len(bodies) == 1:
        return Calls(bodies[0][2], open=start, close=end, several=False, id_characters=id_characters)
    between = text[bodies[0][1] : bodies[1][0]]
    opening = _common_end(start, between)
    rest = between[: len(between) - len(opening)]
    close = os.path.commonprefix([end, rest])
    return Calls(
        bodies[0][2],
        start[: len(start) - len(opening)],
        opening,
        close,
        rest[len(close) :],
        end[len(close) :],
        id_characters=id_characters,
    )


def _before_calls(probe: _Probe, calls: Calls | None) -> str:
    """What stands between what an answer says and the calls behind it."""
    if calls is None:
        return ""
    call = _call(0, calls.id_characters)
    found = probe.written({"content": SAID, "tool_calls": [call]})
    behind = "" if found is None else found[0].partition(SAID)[2]
    body = _body(behind, [call], 0) if behind else None
    return "" if body is None else behind[: body[0]].removesuffix(calls.section_open + calls.open)
