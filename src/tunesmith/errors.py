"""Every error this package raises on purpose; each is also the built-in error a caller would expect."""

import difflib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER_OF_ERRORS = "TUNESMITH_ERRORS"  # of the environment: where a launcher's processes write why they failed
JOB = "TUNESMITH_JOB"  # of the environment: what our own launcher calls processes that it may begin again
RESTART_COUNT = "TUNESMITH_RESTART_COUNT"  # of the environment: how often our own launcher began the run again
LOST = "another rank is gone and left no word (-v shows what it saw of it)"
REASON_CHARACTERS = 80
MOST_SHOWN = 12  # known names in a message
LIKELY = 0.4  # how like a wrong name those are that stand first among many
LONGEST_NAME = 200  # characters of a wrong name that near ones are looked for: a longer one is none
_REASON_END = re.compile(r"[(;]|[.:] ")  # where a message goes on to values and to what to do
_LOST = re.compile(r"onnection (closed|reset|refused)|remote (worker|process)|DistBackendError|Socket Timeout")
_NUMBER = re.compile(r"\[\d+\]")


class TunesmithError(Exception):
    """Base of the package's own errors. The message is one clear line: where, what, and what to do."""


class RecipeError(TunesmithError, ValueError):
    """The recipe says something that cannot be done."""


class DataError(TunesmithError, ValueError):
    """A file or a row of a dataset is not what it should be.

    `reason` is the message without the values of the row, so that rows with the same fault count as one: what is
    given, or the beginning of the message.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or _beginning(message)


class Skipped(DataError):
    """A row is left out on purpose, because an option says so: the reason, which is all of the message, is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, reason)


class TemplateError(TunesmithError, ValueError):
    """A chat template cannot be used to train on the turns that were asked for; `reason` is as in DataError."""

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or _beginning(message)


class ModelError(TunesmithError, ValueError):
    """A model or tokenizer cannot be loaded or used."""


class RunError(TunesmithError, ValueError):
    """A run folder or checkpoint cannot be used as asked."""


class MissingExtra(TunesmithError, ImportError):
    """An optional dependency is not installed; the message has the command that installs it."""


REFUSALS = (RecipeError, ModelError, MissingExtra)  # of what cannot be had, before anything is trained


def _beginning(message: str) -> str:
    return _NUMBER.sub("[]", _REASON_END.split(message, maxsplit=1)[0][:REASON_CHARACTERS]).strip()


def near(wrong: str, known: Iterable[str]) -> str:
    """A hint that ends a message: the closest known names, or the first few when nothing is close."""
    names = sorted(known)
    short, plain = len(wrong) <= LONGEST_NAME, {name.lower(): name for name in names}
    close = difflib.get_close_matches(wrong, names, n=3, cutoff=0.6) if short else []
    close = close or ([plain[wrong.lower()]] if wrong.lower() in plain else [])
    if close:
        return "Did you mean " + " or ".join(repr(name) for name in close) + "?"
    if short and len(names) > MOST_SHOWN:  # the likeliest of many, and then the others as they are ordered
        likely = difflib.get_close_matches(wrong, names, n=3, cutoff=LIKELY)
        names = [*likely, *(name for name in names if name not in likely)]
    shown = [name if name.isprintable() else repr(name) for name in names[:MOST_SHOWN]]
    rest = len(names) - len(shown)
    return "Known: " + ", ".join(shown) + (f" and {rest:,} others" if rest else "") + "."


def left_to_launcher(message: str, kind: type[Exception] = Exception) -> bool:
    """Whether a launcher tells why this process fails: it is written where the launcher looks, if it is the first.

    Of the ranks of an attempt the first is heard, and one that lost the others only where no other said anything.
    """
    folder = os.environ.get(FOLDER_OF_ERRORS)
    if folder is None or not Path(folder).is_dir():
        return False
    attempt, lost = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), _LOST.search(message) is not None
    try:
        with (Path(folder) / f"{attempt:06}-{'lost' if lost else 'first'}.json").open("x", encoding="utf-8") as file:
            refused = issubclass(kind, REFUSALS)
            json.dump({"rank": os.environ.get("RANK"), "message": message, "refused": refused}, file)
    except FileExistsError:
        pass
    return True


def first_left(folder: Path) -> dict[str, Any] | None:
    """The rank, the message and whether it refused, of the first process of the newest attempt that wrote any."""
    written = sorted(folder.glob("*.json"), key=lambda path: (-int(path.name.partition("-")[0]), path.name))
    if not written:
        return None
    found: dict[str, Any] = json.loads(written[0].read_text(encoding="utf-8"))
    return found | ({"message": LOST} if written[0].stem.endswith("lost") else {})


def first_error(folder: Path) -> str | None:
    """The message of that process, with its rank; None: none failed that could."""
    found = first_left(folder)
    if found is None:
        return None
    return ("" if found["rank"] is None else f"rank {found['rank']}: ") + str(found["message"])
