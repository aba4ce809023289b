"""Chooses the format of rows by their columns."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, cast

from tunesmith.component import find, names
from tunesmith.errors import DataError
from tunesmith.formats._fields import listed
from tunesmith.seams import Format
from tunesmith.types import Sample

COMPARED = {"chosen", "rejected"}


class Auto(Format):
    """The shipped format whose required columns a row has.

    When several fit, the one with the most required columns is taken, since fewer columns say less; among
    equals, the first by name. So a row with both `messages` and `text` is a conversation. Rows of `chosen`
    and `rejected`, and conversations with a `label`, are not read as if they had neither. `format:` says
    otherwise in every case.

    ```yaml
    instruction: Name the longest bone of the body.
    output: The thigh bone.
    ```
    """

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample as the chosen format reads it. Raises DataError when no format fits."""
        return choose(row).read(row)


def choose(columns: Iterable[str]) -> Format:
    """The shipped format with the most required columns, all present. Raises DataError when none fits."""
    return _choice(tuple(sorted(columns)))


@lru_cache(maxsize=64)
def _choice(columns: tuple[str, ...]) -> Format:
    present = set(columns)
    kinds = {name: cast(type[Format], find(Format, name)) for name in names(Format) if name != "auto"}
    fitting = [kind for kind in kinds.values() if set(kind.required) <= present]
    if not fitting:
        known = "; ".join(f"{name} ({', '.join(kind.required)})" for name, kind in kinds.items())
        raise DataError(
            f"no format fits the columns {listed(columns)}. Known: {known}. "
            "Rename columns with `columns:`, as in {instruction: Question, output: Answer}"
        )
    best = max(fitting, key=lambda kind: len(kind.required))
    if present >= COMPARED and not COMPARED <= set(best.required):
        name = best.__module__.rpartition(".")[2]
        raise DataError(
            f"the columns chosen and rejected hold answers to compare, which the format {name} leaves out; "
            f"say `format: {name}` to learn from the other columns alone"
        )
    if "label" in present and best.required == ("messages",):
        raise DataError(
            f"the columns {listed(columns)} have a label for good and bad answers, which the format messages leaves "
            "out; say `format: messages` to learn from all of them"
        )
    return best()
