"""Pictures, video and sound of a row: paths beside the conversation, and marks in its text where they stand."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tunesmith.errors import DataError
from tunesmith.formats._fields import Fields, described, from_json
from tunesmith.types import Message

KINDS = {"images": "image", "videos": "video", "audios": "audio"}  # the column, and the mark without its brackets


def with_media(row: Fields, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns with a part, {type: image, path: ...}, for each mark such as `<image>` and its path in the row.

    Paths are kept as the row has them. A mark stays text where the row has no paths of its kind.

    Raises:
        DataError: there are more marks than paths, or fewer.
    """
    given = {kind: _paths(row, column) for column, kind in KINDS.items() if row.values.get(column)}
    if not given:
        return turns
    left = {kind: iter(paths) for kind, paths in given.items()}
    marks = re.compile("<(" + "|".join(given) + ")>")
    _agree(turns, given, marks)
    return tuple(_with_parts(turn, left, marks) for turn in turns)


def _paths(row: Fields, column: str) -> list[str]:
    value = from_json(row.values[column])
    paths = [value] if isinstance(value, str) else row.items(column)
    found: list[str] = []
    for item in paths:
        path = item.get("path") if isinstance(item, Mapping) else item
        if not isinstance(path, str) or not path:
            raise row.wrong(column, f"must hold paths and holds {described(item)}")
        found.append(path)
    return found


def _agree(turns: tuple[Message, ...], given: Mapping[str, list[str]], marks: re.Pattern[str]) -> None:
    counts = dict.fromkeys(given, 0)
    for turn in turns:
        for kind in _marked(turn, marks):
            counts[kind] = counts.get(kind, 0) + 1
    for kind, paths in given.items():
        if counts[kind] != len(paths):
            raise DataError(
                f"the conversation has {counts[kind]} marks <{kind}>, and column '{kind}s' has {len(paths)} paths: "
                "each needs the other",
                f"marks <{kind}> and paths in column '{kind}s' differ in number",
            )


def _marked(turn: Message, marks: re.Pattern[str]) -> list[str]:
    """The kind of each mark in a turn, in order."""
    if isinstance(turn.content, str):
        return marks.findall(turn.content)
    found = []
    for part in turn.content:
        if part["type"] == "text":
            found += marks.findall(part["text"])
        elif _is_mark(part):
            found.append(part["type"])
    return found


def _is_mark(part: Mapping[str, Any]) -> bool:
    """Whether a part of a list says that there is a picture, and not which."""
    return not any(value for key, value in part.items() if key != "type")


def _with_parts(turn: Message, left: Mapping[str, Iterator[str]], marks: re.Pattern[str]) -> Message:
    if not any(kind in left for kind in _marked(turn, marks)):
        return turn
    if turn.spans is not None:
        raise DataError(
            f"train_spans counts the characters of a text, and the turn {turn.content!r:.40} has media in it",
            "train_spans counts the characters of a text, and the turn has media in it",
        )
    parts: list[Mapping[str, Any]] = []
    given = ({"type": "text", "text": turn.content},) if isinstance(turn.content, str) else turn.content
    for part in given:
        if part["type"] == "text":
            for number, piece in enumerate(marks.split(part["text"])):  # text and marks in turn
                if number % 2:
                    parts.append({"type": piece, "path": next(left[piece])})
                elif piece:
                    parts.append({"type": "text", "text": piece})
        elif _is_mark(part) and part["type"] in left:
            parts.append({"type": part["type"], "path": next(left[part["type"]])})
        else:
            parts.append(part)
    return replace(turn, content=tuple(parts))
