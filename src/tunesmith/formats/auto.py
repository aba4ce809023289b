"""Chooses the format of rows by what they hold."""

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from tunesmith.component import find, names
from tunesmith.errors import DataError
from tunesmith.formats._fields import listed
from tunesmith.seams import Format
from tunesmith.types import Sample

NEAREST = 3  # formats that a message lists


class Auto(Format):
    """The shipped format that a row fits, which is chosen once for a source, by its first row.

    When several fit, one that reads a comparison or a label comes first, since the others would leave it out; then
    the one that requires the most columns, since fewer columns say less; then the first by name. So a row with
    `chosen` and `rejected` is of the format pairs; one with messages, conversations, a prompt or an instruction and
    an answer, and a `label` that is true or false is labelled; a `text` with a label is of classes; and a row with
    both `messages` and `text` is a conversation. `format:` says otherwise in every case.

    ```yaml
    instruction: Name the longest bone of the body.
    output: The thigh bone.
    ```
    """

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample as the chosen format reads it. Raises DataError when no format fits."""
        return choose(row).read(row)


def choose(row: Mapping[str, Any]) -> Format:
    """The shipped format that a row fits best. Raises DataError when none fits."""
    fitting = [(name, kind) for name, kind in _shipped().items() if kind.fits(row)]
    if not fitting:
        raise _unknown(row)
    return min(fitting, key=lambda one: (not _reads_more(one[1]), -_columns(one[1]), one[0]))[1]()


def _columns(kind: type[Format]) -> int:
    """How many columns say that a row is of a format; one that requires none by name looks for two or more."""
    return len(kind.required) or 2


def _reads_more(kind: type[Format]) -> bool:
    """Whether a format reads more than one conversation: answers to compare, or a label."""
    return kind().labels() or len(kind().branches()) > 1


@cache
def _shipped() -> dict[str, type[Format]]:
    return {name: cast(type[Format], find(Format, name)) for name in names(Format) if name != "auto"}


def _unknown(row: Mapping[str, Any]) -> DataError:
    """The error that names the formats which require a column that the row has."""
    small = {str(column).lower() for column in row}
    shared = {
        name: [column for column in kind.required if column in small]
        for name, kind in _shipped().items()
        if kind.required
    }
    nearest = sorted((name for name in shared if shared[name]), key=lambda name: (-len(shared[name]), name))[:NEAREST]
    words = [f"{name} ({', '.join(_shipped()[name].required)})" for name in nearest]
    said = f"The nearest: {'; '.join(words)}" if words else f"Known: {', '.join(_shipped())}"
    return DataError(
        f"no format fits the columns {listed(row)}. {said}. "
        "Rename columns with `columns:`, as in {instruction: Question, output: Answer}"
    )
