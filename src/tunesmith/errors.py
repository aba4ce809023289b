"""Every error this package raises on purpose; each is also the built-in error a caller would expect."""

import difflib
from collections.abc import Iterable


class TunesmithError(Exception):
    """Base of the package's own errors. The message is one clear line: where, what, and what to do."""


class RecipeError(TunesmithError, ValueError):
    """The recipe says something that cannot be done."""


class DataError(TunesmithError, ValueError):
    """A file or a row of a dataset is not what it should be."""


class TemplateError(TunesmithError, ValueError):
    """A chat template cannot be used to train on the turns that were asked for."""


class ModelError(TunesmithError, ValueError):
    """A model or tokenizer cannot be loaded or used."""


class RunError(TunesmithError, ValueError):
    """A run folder or checkpoint cannot be used as asked."""


class MissingExtra(TunesmithError, ImportError):
    """An optional dependency is not installed; the message has the command that installs it."""


def near(wrong: str, known: Iterable[str]) -> str:
    """A hint that ends a message: the closest known names, or the first few when nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=3, cutoff=0.6)
    if close:
        return "Did you mean " + " or ".join(repr(name) for name in close) + "?"
    shown = [name if name.isprintable() else repr(name) for name in names[:12]]
    return "Known: " + ", ".join(shown) + (", ..." if len(names) > 12 else "") + "."
