"""Where the parts of a conversation stand in its text, whatever a template writes around them.

The conversation is written once more with a mark before and behind each part, characters that stand nowhere in the
text. When the marks taken out leave the very same text, they say where the parts are. Blanks around a part stay
outside of its marks, as a template that trims would take the marks for text. Where a template does not write the same
text around marks, the part alone is replaced by a mark, and the text before and behind it must be the same.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TemplateError
from tunesmith.templates._apply import Tools, Turns, apply, ending_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Place = tuple[int, int]  # characters from the first to behind the last

MARKS = range(0x100000, 0x10FFFE)  # the last plane of Unicode, for private use
THINK = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)  # reasoning at the beginning of an answer's content


@dataclass(frozen=True, slots=True)
class Found:
    """Where the parts of one turn stand in the text, without the blanks around them; None where one is not written.

    `calls` are the names of the called functions. `spans` are those of the turn's content that were asked for, in
    pieces where the template writes something between; their number is that of the span.
    """

    content: Place | None
    reasoning: Place | None
    calls: tuple[Place, ...]
    spans: tuple[tuple[int, Place], ...]

    @property
    def start(self) -> int | None:
        """Where the first part begins, None when the turn says nothing."""
        said = [place[0] for place in (self.content, self.reasoning, *self.calls) if place is not None]
        return min(said, default=None)

    @property
    def end(self) -> int | None:
        """Where the last part ends, None when the turn says nothing."""
        said = [place[1] for place in (self.content, self.reasoning, *self.calls) if place is not None]
        return max(said, default=None)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a turn that is looked for: characters of the text under a key, in `tool_calls` a call's name."""

    kind: str  # content, reasoning, calls or span
    key: str  # content, reasoning_content or tool_calls
    start: int
    end: int
    number: int = 0  # of the call or the span


@dataclass(frozen=True, eq=False)
class Conversation:
    """A conversation and its text, in which parts are looked for."""

    tokenizer: "PreTrainedTokenizerBase"
    turns: Turns
    tools: Tools
    text: str

    def find(self, index: int, spans: Iterable[Place] = ()) -> Found:
        """The parts of a turn, and of the characters of its content that `spans` are.

        Raises:
            TemplateError: the template writes a part in a way that leaves its place unclear.
        """
        turn = self.turns[index]
        parts = list(_parts(turn))
        asked = [Part("span", "content", *_stripped(turn["content"], a, b), n) for n, (a, b) in enumerate(spans)]
        asked = [part for part in asked if part.start < part.end]
        inside = [
            Part("span", "content", max(one.start, part.start), min(one.end, part.end), one.number)
            for one in asked
            for part in parts
            if part.key == "content" and max(one.start, part.start) < min(one.end, part.end)
        ]
        for chosen in ([*parts, *asked], [*parts, *inside]):
            places = self._marked(index, chosen)
            if places is not None:
                return _found(places)
        return _found([(part, self._replaced(index, part)) for part in (*parts, *inside)])

    def point(self, index: int) -> int | None:
        """Where the content of a turn without one would begin, None when that is unclear."""
        mark = next(self._marks())
        other = [*self.turns[:index], self.turns[index] | {"content": mark}, *self.turns[index + 1 :]]
        before, found, _ = self._written(other).partition(mark)
        return len(before) if found and self.text.startswith(before) else None

    def turn_end(self, index: int) -> int:
        """Where a turn that says something ends, with the token that ends it.

        That is EOS, or else the first special or added token, between what it says and what the next turn says.

        Raises:
            TemplateError: as `find`.
        """
        end = self.find(index).end
        assert end is not None
        following = self.find(index + 1).start if index + 1 < len(self.turns) else None
        behind = self.text[end : len(self.text) if following is None or following < end else following]
        eos = str(self.tokenizer.eos_token) if self.tokenizer.eos_token else ""
        tokens = [eos] if eos and eos in behind else [one for one in ending_tokens(self.tokenizer) if one in behind]
        first = min(tokens, key=lambda one: (behind.index(one), -len(one)), default="")
        return end + (behind.index(first) + len(first) if first else 0)

    def _marks(self) -> Iterator[str]:
        return (mark for mark in map(chr, MARKS) if mark not in self.text)

    def _written(self, turns: Turns) -> str:
        """The text of changed turns; empty when the template refuses them."""
        try:
            return apply(self.tokenizer, turns, self.tools)
        except TemplateError:
            return ""

    def _marked(self, index: int, parts: list[Part]) -> list[tuple[Part, Place | None]] | None:
        """The place of each part of a turn, None when the template does not write the same around marks."""
        marks = self._marks()
        pairs = [(part, next(marks), next(marks)) for part in parts]
        text = self._written([*self.turns[:index], _with_marks(self.turns[index], pairs), *self.turns[index + 1 :]])
        places: dict[str, int] = {}
        every = "".join(opening + closing for _, opening, closing in pairs)
        for number, match in enumerate(re.finditer(f"[{every}]", text) if every else ()):
            if match[0] in places:  # written twice: which of them is learned is unclear
                return None
            places[match[0]] = match.start() - number
        if text.translate(dict.fromkeys(map(ord, every))) != self.text:
            return None
        found: list[tuple[Part, Place | None]] = []
        for part, opening, closing in pairs:
            start, end = places.get(opening), places.get(closing)
            if (start is None) != (end is None) or (start is not None and end is not None and start > end):
                return None
            found.append((part, None if start is None or end is None else (start, end)))
        return found

    def _replaced(self, index: int, part: Part) -> Place:
        """The place of a part, by the text without it. Raises TemplateError when that is not the same around it."""
        mark = next(self._marks())
        turn = _changed(self.turns[index], part, mark)
        before, found, behind = self._written([*self.turns[:index], turn, *self.turns[index + 1 :]]).partition(mark)
        same = self.text.startswith(before) and self.text.endswith(behind)
        if not found or mark in behind or not same or len(before) + len(behind) > len(self.text):
            kind = {"calls": "tool calls", "span": "marked characters"}.get(part.kind, part.kind)
            raise TemplateError(
                f"turn {index + 1} of {len(self.turns)}: where the chat template writes its {kind} is unclear, so "
                "data.loss cannot choose among its parts: use another template (data.template.file=FILE), or learn "
                "the turn as a whole",
                f"where the {kind} of a turn stand is unclear",
            )
        return len(before), len(self.text) - len(behind)


def without_reasoning(content: str) -> int:
    """The number of characters that a `<think>` block takes at the beginning of an answer, 0 when there is none."""
    block = THINK.match(content)
    return 0 if block is None else len(content) - len(content[block.end() :].lstrip())


def _parts(turn: dict[str, Any]) -> Iterator[Part]:
    """What a turn says: its content, its reasoning (which may stand in the content) and its calls."""
    content, said = turn["content"], 0
    assert isinstance(content, str), "conversations of other parts are not rendered"
    if turn["role"] == "assistant":
        block = THINK.match(content)
        if block is not None:
            said = block.end()
            yield from _part("reasoning", "content", content, *block.span(1))
        yield from _part("reasoning", "reasoning_content", turn.get("reasoning_content") or "")
    yield from _part("content", "content", content, said)
    for number, call in enumerate(turn.get("tool_calls", ())):
        yield Part("calls", "tool_calls", 0, len(call["function"]["name"]), number)


def _part(kind: str, key: str, text: str, start: int = 0, end: int | None = None) -> Iterator[Part]:
    start, end = _stripped(text, start, len(text) if end is None else end)
    if start < end:
        yield Part(kind, key, start, end)


def _stripped(text: str, start: int, end: int) -> Place:
    """A piece of a text without the blanks at its ends."""
    said = text[start:end].strip()
    first = text.index(said, start) if said else start
    return first, first + len(said)


def _with_marks(turn: dict[str, Any], pairs: list[tuple[Part, str, str]]) -> dict[str, Any]:
    """A turn with marks around some of its parts."""
    marked = dict(turn)
    for key in ("content", "reasoning_content"):
        # At one place: what ends goes first, the inner before the outer; then what begins, the outer before the inner.
        edges = [
            edge
            for part, opening, closing in pairs
            if part.key == key
            for edge in (
                (part.end, 0 if part.kind == "span" else 1, closing),
                (part.start, 3 if part.kind == "span" else 2, opening),
            )
        ]
        for place, _, mark in sorted(edges, reverse=True):
            marked[key] = marked[key][:place] + mark + marked[key][place:]
    calls = list(turn.get("tool_calls", ()))
    for part, opening, closing in pairs:
        if part.key == "tool_calls":
            calls[part.number] = _named(calls[part.number], f"{opening}{_name(calls[part.number])}{closing}")
    return marked | {"tool_calls": calls} if calls else marked


def _changed(turn: dict[str, Any], part: Part, mark: str) -> dict[str, Any]:
    """A turn with a mark in place of a part."""
    if part.key == "tool_calls":
        calls = list(turn["tool_calls"])
        calls[part.number] = _named(calls[part.number], mark)
        return turn | {"tool_calls": calls}
    text = turn[part.key]
    return turn | {part.key: text[: part.start] + mark + text[part.end :]}


def _name(call: dict[str, Any]) -> str:
    name = call["function"]["name"]
    assert isinstance(name, str)
    return name


def _named(call: dict[str, Any], name: str) -> dict[str, Any]:
    return call | {"function": call["function"] | {"name": name}}


def _found(places: list[tuple[Part, Place | None]]) -> Found:
    written = [(part, place) for part, place in places if place is not None]
    one = {part.kind: place for part, place in written}
    return Found(
        content=one.get("content"),
        reasoning=one.get("reasoning"),
        calls=tuple(place for part, place in written if part.kind == "calls"),
        spans=tuple((part.number, place) for part, place in written if part.kind == "span"),
    )
