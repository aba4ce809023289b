"""Topics that are tables of facts: `material/*.yaml`.

A table has `fields`, `rows` (parted by ";", their fields by " = ") and `frames`; with `both_ways` the rows
are read from right to left too. A frame asks for one row (`ask`), answers (`answer`) and may say the bare
answer (`short`), ask again for other rows (`follow`), or go on about the same row (`then`); a `pool` never
repeats an answer. With `check` it names a field and asks a yes-or-no question about `{guess}`: the row's
value or another's.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from random import Random
from typing import Any

import yaml

from tunesmith.builtin.corpus_language import Turn, question, say

Topic = Callable[[Random], list[Turn]]
FACT_FILES = ("geography", "nature", "things", "words", "howto", "knowledge", "chat")


@functools.cache
def material(name: str) -> dict[str, Any]:
    """Read one file of `material/`, once."""
    text = resources.files("tunesmith.builtin").joinpath("material", f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One way to ask about a row."""

    ask: list[str]
    answer: list[str] = field(default_factory=list)
    short: str | None = None
    follow: list[str] = field(default_factory=list)
    then: list[dict[str, Any]] = field(default_factory=list)
    check: str | None = None
    right: str = ""
    wrong: str = ""
    pool: bool = False
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows and the frames that ask for them."""

    rows: list[dict[str, str]]
    frames: list[Frame]

    def turns(self, rng: Random) -> list[Turn]:
        """Ask about one row, sometimes with follow-ups."""
        frame = rng.choices(self.frames, [frame.weight for frame in self.frames])[0]
        row = pick_row(self.rows, rng)
        if frame.check:
            return [self._check(frame, row, rng)]
        turns = [_turn(frame, frame.ask, row, rng)]
        if frame.then and rng.random() < 0.5:
            turns.append(_turn(after := Frame(**rng.choice(frame.then)), after.ask, row, rng))
        elif frame.follow and rng.random() < 0.4:
            turns += self._follow(frame, row, turns[0].answer, rng)
        return turns

    def _follow(self, frame: Frame, row: dict[str, str], answer: str, rng: Random) -> list[Turn]:
        seen, turns = [answer], []
        for _ in range(rng.choice((1, 1, 2))):
            turn = _turn(frame, frame.follow, row if frame.pool else pick_row(self.rows, rng), rng)
            if turn.answer not in seen:
                seen.append(turn.answer)
                turns.append(turn)
        return turns

    def _check(self, frame: Frame, row: dict[str, str], rng: Random) -> Turn:
        true = row[frame.check or ""]
        right = rng.random() < 0.5
        wrong = sorted({other[frame.check or ""] for other in self.rows} - {true})
        fields = row | {"guess": true if right else rng.choice(wrong)}
        answer = say(rng, frame.right if right else frame.wrong, **fields)
        return Turn(question(rng, frame.ask, **fields), answer, short="Yes." if right else "No.")


def pick_row(rows: list[dict[str, str]], rng: Random) -> dict[str, str]:
    """Draw one row, with one of the choices wherever a field gives several."""
    return {name: rng.choice(value.split(" / ")) for name, value in rng.choice(rows).items()}


def _turn(frame: Frame, asks: list[str], row: dict[str, str], rng: Random) -> Turn:
    short = say(rng, frame.short, **row).rstrip(".") + "." if frame.short else None
    return Turn(question(rng, asks, **row), say(rng, frame.answer, **row), short=short)


def _rows(data: dict[str, Any]) -> list[dict[str, str]]:
    if "rows" not in data:
        return [{}]
    lines = [line.strip().split(" = ") for line in data["rows"].split(";") if line.strip()]
    if data.get("both_ways"):
        known = {line[0] for line in lines}
        first = {line[1]: line for line in reversed(lines)}  # of several with one answer, the first
        lines += [line[::-1] for line in lines if line[1] not in known and first[line[1]] is line]
    return [dict(zip(data["fields"], map(str.strip, line), strict=True)) for line in lines]


@functools.cache
def table(file: str, name: str) -> Table:
    """Read one table of one file."""
    data = material(file)[name]
    return Table(rows=_rows(data), frames=[Frame(**frame) for frame in data["frames"]])


def topics() -> list[tuple[float, Topic]]:
    """List every table as a topic, with its weight."""
    return [
        (data["weight"], table(file, name).turns)
        for file in FACT_FILES
        for name, data in material(file).items()
        if data["weight"]
    ]
