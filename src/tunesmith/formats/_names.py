"""Classes by their number, or by their name where names are known."""

from typing import Annotated, Any

from pydantic import AfterValidator

from tunesmith.errors import near
from tunesmith.formats._fields import Fields, described

MOST_CLASSES = 2**24  # whole numbers that a label holds, which is a float32


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of classes. Raises ValueError when one of them stands twice."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the class {twice!r} stands twice")
    return names


Names = Annotated[tuple[str, ...], AfterValidator(_distinct)]


def number(row: Fields, key: str, label: Any, names: tuple[str, ...]) -> int:
    """The number of the class that a column says. Raises DataError when it says none."""
    if isinstance(label, str) and label in names:
        return names.index(label)
    found = int(label) if isinstance(label, bool | int) or _is_number(label) else None
    if found is None and isinstance(label, str):
        how = near(label, names) if names else "Say `classes: [NAME, ...]` in the order of their numbers."
        raise row.wrong(key, f"is {described(label)}, no class that is known. {how}", "is no class that is known")
    if found is None:
        raise row.wrong(key, f"must be the number or the name of a class and is {described(label)}")
    most = len(names) - 1 if names else MOST_CLASSES
    if not 0 <= found <= most:
        raise row.wrong(key, f"must be from 0 to {most:,} and is {described(label)}")
    return found


def _is_number(label: Any) -> bool:
    """Whether a label is the text of a whole number, as tables have it."""
    return isinstance(label, str) and label.isascii() and label.isdigit() and len(label) < 9
