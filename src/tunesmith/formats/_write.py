"""What formats that write share: what a row cannot hold is refused, and a row reads as what it was written of."""

from collections.abc import Sequence
from typing import Any

from tunesmith.component import name_of
from tunesmith.errors import DataError
from tunesmith.seams import Format
from tunesmith.types import Message, Sample


def refuse(name: str, sample: Sample, **holds: bool) -> None:
    """Raise DataError when a sample has something that the format called `name` cannot hold.

    `holds` says what it can: `documents`, `label`, `branches` (two), `tools`, `words` (with classes).
    """
    number = len(sample.branches)
    found = {
        "documents": sample.is_document,
        "label": sample.label is not None,
        "branches": number > 1,
        "tools": bool(sample.tools),
        "words": bool(sample.words),
    }
    words = {
        "documents": "a plain document",
        "label": "a label",
        "branches": "two answers to compare",
        "tools": "tools",
        "words": "classes of words",
    }
    for key, there in found.items():
        if there and not holds.get(key):
            raise DataError(f"the format {name} cannot hold {words[key]}", f"{name} cannot hold {words[key]}")
    if holds.get("branches") and number != 2:
        raise DataError(f"the format {name} holds two answers to compare, and there is {number}")
    if holds.get("words") and not sample.words:
        raise DataError(
            f"the format {name} holds words with their classes, and there are none", f"{name} needs classes"
        )
    if holds.get("label") and sample.label is None:
        raise DataError(f"the format {name} holds a label, and there is none", f"{name} needs a label")


def texts_alone(name: str, turns: Sequence[Message]) -> list[str]:
    """The texts of turns that are nothing but a role and a text. Raises DataError."""
    for turn in turns:
        if turn != Message(turn.role, turn.content) or not isinstance(turn.content, str):
            more = "tool calls" if turn.tool_calls else "more of a turn than its text"
            raise DataError(f"the format {name} cannot hold {more}, which a turn of the {turn.role} has")
    return [str(turn.content) for turn in turns]


def exchanges(name: str, turns: tuple[Message, ...]) -> tuple[str | None, list[list[str]]]:
    """The system message, and each question with its answer. Raises DataError when the turns are none of these."""
    texts = texts_alone(name, turns)
    system = texts.pop(0) if turns[0].role == "system" else None
    roles = [turn.role for turn in turns[len(turns) - len(texts) :]]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(
            f"the format {name} holds questions, each with its answer, and the roles are {', '.join(roles) or 'none'}",
            f"{name} holds questions, each with its answer, alone",
        )
    return system, [texts[at : at + 2] for at in range(0, len(texts), 2)]


def finished(format_: Format, sample: Sample, row: dict[str, Any]) -> dict[str, Any]:
    """The row with the sample's tools, if any: what the format reads as the sample it was written of.

    Raises:
        DataError: it reads the row as another sample.
    """
    if sample.tools:
        row = row | {"tools": [dict(tool) for tool in sample.tools]}
    problem = f"the format {name_of(format_)} cannot hold the sample"
    try:
        same = format_.read(row) == sample
    except DataError as error:
        raise DataError(f"{problem}: {error}", f"{problem}: {error.reason}") from None
    if not same:
        raise DataError(f"{problem}, which it would read as another one")
    return row
