"""Which rows are refused, and when the whole source is.

The first row of a source must be read and written: a wrong format, column or template shows there. A later row that
the format cannot read, or the template cannot write, is left out, counted by its reason and named. When they are more
than a tenth of the first 1,000 rows, or of all rows from then on or at the end (of ten or more), it is no exception
any longer and the run stops.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import formats
from tunesmith.component import all_of, name_of
from tunesmith.data.source import Registered
from tunesmith.errors import DataError, near
from tunesmith.recipe_data import Source
from tunesmith.seams import Format, Objective
from tunesmith.types import Message, Sample

if TYPE_CHECKING:
    from tunesmith.data.rendered import Rendered

LEAST_ROWS, LOOK_ROWS = 10, 1_000
MOST_REFUSED = 0.1  # of the rows
SHOWN = 3  # rows that the error names
LONGEST_MESSAGE = 200  # characters of each

MISSING_IMAGE = "an image file is missing"
MEDIA = {"image": "images", "audio": "sound"}  # other kinds are said by their own name


class Tolerance:
    """Counts the refused rows of one source, in whatever chunks its samples come. `look` at each, then `end`."""

    def __init__(self) -> None:
        self.rows = self.refused = 0
        self.first: list[str] = []

    def look(self, samples: "Iterable[Rendered]") -> None:
        """Count some samples. Raises DataError when too many rows of a longer source were refused."""
        for one in samples:
            self.rows += one.part == 0
            if one.refused is not None:
                self.refused += 1
                self.first = [*self.first, f"{one.where}: {one.refused[:LONGEST_MESSAGE]}"][:SHOWN]
        if self.rows >= LOOK_ROWS:
            self.end()

    def end(self) -> None:
        """Raise DataError when too many of all rows were refused."""
        judge(self.rows, self.refused, self.first)


def judge(rows: int, refused: int, first: Iterable[str]) -> None:
    """Raise DataError, with the first places and messages, when too many rows of a source or stream were refused."""
    if rows >= LEAST_ROWS and refused > MOST_REFUSED * rows:
        raise DataError(
            f"{refused:,} of the first {rows:,} rows cannot be used, more than a tenth. {' | '.join(first)}"
        )


def fits(format_: Format, objective: type[Objective]) -> bool:
    """Whether an objective learns from all that the rows of a format hold, and they hold what it learns from.

    A label of a comparison is more than it needs; one of a single answer is what it learns.
    """
    labels, wanted = format_.labels(), objective.labels
    if objective.mismatched and not type(format_).judges:
        return False
    return format_.branches() == objective.branches and (labels == wanted or (wanted and len(objective.branches) > 1))


def unlearnable(format_: Format, objective: Objective) -> str | None:
    """Why an objective cannot learn from the rows of a format, and what to say instead; None when it can."""
    if fits(format_, type(objective)):
        return None
    rows, wanted = format_.branches(), type(objective).branches
    name, kind = name_of(format_), name_of(objective)
    takes = " or ".join(
        other
        for other, found in all_of(Format).items()
        if issubclass(found, Format) and other != Format.default and fits(found(), type(objective))
    )
    if rows == wanted and len(rows) > 1:
        return (
            f"rows of the format {name} hold margins, which the objective {kind} does not learn from: leave "
            "format.margin out, or say objective=reward"
        )
    if rows != wanted and len(rows) == 1:
        return (
            f"the objective {kind} learns from {' and '.join(wanted)} conversations, and a row of the format {name} "
            f"holds one: say the format of rows that compare (format: {takes}), or another objective"
        )
    if rows == wanted and type(objective).labels:
        learned = "whether an answer is good or bad" if type(objective).mismatched else "a label"
        return f"the objective {kind} learns {learned}, which the format {name} does not say: say format: {takes}"
    held = "labels for good and bad" if rows == wanted else f"{' and '.join(rows)} conversations"
    learning = [
        other
        for other, found in all_of(Objective).items()
        if issubclass(found, Objective) and fits(format_, found) and found.encodes == type(objective).encodes
    ]
    only = f"format: {{type: {name}, only: {'good' if rows == wanted else rows[0]}}}, to learn from those alone"
    if type(objective).labels:
        ways = [f"format: {takes}"]
    else:
        ways = [only] if "only" in type(format_).model_fields else []
    ways += [f"objective={' or '.join(learning)}"] if learning else []
    instead = ", or ".join(ways) or "another format, which leaves them out"
    return f"rows of the format {name} hold {held}, which the objective {kind} does not learn from: say {instead}"


class Watched(dict[str, Any]):
    """A row that remembers which of its columns were looked at."""

    def __init__(self, row: Mapping[str, Any], used: set[str]) -> None:
        super().__init__(row)
        self._used = used

    def __getitem__(self, name: str) -> Any:
        self._used.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a column, which then counts as used."""
        self._used.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self._used.add(str(name))
        return super().__contains__(name)


def unread(source: Source, format_: Format, row: Mapping[str, Any]) -> str | None:
    """What to say of names in `columns` that a shipped format does not look for in the first row; None without any.

    What a registry names is not looked at: entries for LLaMA-Factory name columns that some rows lack.
    """
    shipped = type(format_).__module__.startswith(f"{formats.__name__}.")
    if isinstance(source, Registered) or not source.columns or not shipped:
        return None
    used = {"images", "videos", "audios"}
    try:
        format_.read(Watched(row, used))
    except DataError:  # which is said where the row is rendered
        return None
    names = [name for name, column in source.columns.items() if column and name not in used]
    if not names:
        return None
    required = {name for kind in all_of(Format).values() if issubclass(kind, Format) for name in kind.required}
    hint = near(names[0], used | required)
    return f"`columns` names {names[0]!r}, which the format {name_of(format_)} does not read. {hint}"


def media(where: str, sample: Sample) -> str | None:
    """Why a conversation with parts that are no text is left out; None when it has none."""
    parts = [part for turns in sample.branches for turn in turns for part in _parts(turn)]
    names = [str(part["type"]).removesuffix("_url").removeprefix("input_") for part in parts]
    kinds = [MEDIA.get(name, name) for name in names if name != "text"]
    if not kinds:
        return None
    folder = Path(where.rpartition(":")[0]).parent  # of the file that the row stands in
    paths = [str(part["path"]) for part in parts if part["type"] == "image" and part.get("path")]
    if any("://" not in path and not (folder / path).is_file() for path in paths):
        return MISSING_IMAGE
    return f"holds {' and '.join(dict.fromkeys(kinds))}, and only text is trained so far"


def _parts(turn: Message) -> tuple[dict[str, object], ...]:
    return () if isinstance(turn.content, str) else tuple(dict(part) for part in turn.content)
