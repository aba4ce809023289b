"""Every error this package raises on purpose; each is also the built-in error a caller would expect."""

import difflib
import re
from collections.abc import Iterable

REASON_CHARACTERS = 80
_REASON_END = re.compile(r"[(;]|[.:] ")  # where a message goes on to values and to what to do
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


def _beginning(message: str) -> str:
    return _NUMBER.sub("[]", _REASON_END.split(message, maxsplit=1)[0][:REASON_CHARACTERS]).strip()


def near(wrong: str, known: Iterable[str]) -> str:
    """A hint that ends a message: the closest known names, or the first few when nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=3, cutoff=0.6)
    if close:
        return "Did you mean " + " or ".join(repr(name) for name in close) + "?"
    shown = [name if name.isprintable() else repr(name) for name in names[:12]]
    return "Known: " + ", ".join(shown) + (", ..." if len(names) > 12 else "") + "."
