"""The fields of a row, taken with a check: what is missing or of a wrong type is an error that names it."""

import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import DataError

MOST_NAMES = 12  # names that a message lists

_KINDS: dict[type, str] = {
    str: "text", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fields:
    """The columns of a row, or the keys of an object in it."""

    values: Mapping[str, Any]
    place: str = ""  # such as `messages[2]`; empty for the row itself

    def text(self, key: str) -> str:
        """A text that must be there; it may be empty. Raises DataError."""
        if key not in self.values:
            raise self.wrong(key, "is missing")
        value = self.values[key]
        if not isinstance(value, str):
            raise self.wrong(key, f"must be text and is {described(value)}")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise self.wrong(key, f"has half a character ({value[error.start]!r})") from None
        return value

    def optional_text(self, key: str) -> str | None:
        """A text, or None when the field is missing or null. Raises DataError."""
        return None if self.values.get(key) is None else self.text(key)

    def items(self, key: str) -> list[Any]:
        """A list that must be there, or the JSON text of one. Raises DataError."""
        if key not in self.values:
            raise self.wrong(key, "is missing")
        value = from_json(self.values[key])
        if not isinstance(value, list | tuple):
            raise self.wrong(key, f"must be a list (or its JSON text) and is {described(value)}")
        return list(value)

    def optional_items(self, key: str) -> list[Any]:
        """A list or its JSON text; empty when the field is missing, null or empty text. Raises DataError."""
        return [] if self.values.get(key) in (None, "") else self.items(key)

    def objects(self, key: str) -> list["Fields"]:
        """The objects of a list that must be there. Raises DataError."""
        return [self._object(key, number, item) for number, item in enumerate(self.items(key))]

    def optional_objects(self, key: str) -> list["Fields"]:
        """The objects of a list; none when the field is missing, null or an empty text. Raises DataError."""
        return [self._object(key, number, item) for number, item in enumerate(self.optional_items(key))]

    def _object(self, key: str, number: int, item: Any) -> "Fields":
        place = f"{self.place}.{key}[{number}]" if self.place else f"{key}[{number}]"
        if not isinstance(item, Mapping):
            raise DataError(f"{place} must be an object and is {described(item)}")
        return Fields(item, place)

    def writable(self, key: str, value: Any) -> Any:
        """The value, which a template can write as JSON. Raises DataError."""
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise self.wrong(key, f"cannot be written as JSON: {error}") from None
        return value

    def wrong(self, key: str, said: str, reason: str | None = None) -> DataError:
        """The error that says what is wrong with a field, and which fields there are.

        `reason` is `said` without the values of the row, where it has some that no bracket encloses.
        """
        names = listed(self.values)
        if self.place:
            field, rest = f"{self.place}.{key}", f"{self.place} has the keys {names}"
        else:
            rename = f" (`columns: {{{key}: NAME}}` says which one holds it)" if said == "is missing" else ""
            field, rest = f"column {key!r}", f"the row has the columns {names}{rename}"
        return DataError(f"{field} {said}; {rest}", DataError(f"{field} {reason}").reason if reason else None)


def listed(names: Iterable[Any]) -> str:
    """The first names in words, for messages of one line."""
    shown = [str(name) if str(name).isprintable() else repr(name) for name in names]
    return (", ".join(shown[:MOST_NAMES]) or "none") + (", ..." if len(shown) > MOST_NAMES else "")


def from_json(value: Any) -> Any:
    """What a JSON text holds; a value that is no JSON text is itself."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def described(value: Any) -> str:
    """A value's type and beginning in words, for messages."""
    if value is None:
        return "null"
    return f"{_KINDS.get(type(value), f'a {type(value).__name__}')} ({reprlib.repr(value)})"
