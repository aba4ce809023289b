"""`tunesmith data convert`: the rows of a source in another format and another kind of file, each accounted for."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.component import all_of, name_of
from tunesmith.data import refuse, registry, source, write
from tunesmith.data.ledger import note, places
from tunesmith.errors import DataError, RecipeError, Skipped
from tunesmith.explain import choose, explain
from tunesmith.formats import auto
from tunesmith.recipe_data import Data, Source
from tunesmith.seams import Format
from tunesmith.types import Sample


@dataclass
class Account:
    """What became of the rows: `rows_read == rows_written` + those left out, by reason."""

    path: str
    format: str = ""
    to: str = ""
    rows_read: int = 0
    rows_written: int = 0
    left_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    unused_columns: list[str] = field(default_factory=list)  # of the input, which its format does not read

    def as_dict(self) -> dict[str, Any]:
        """The counts, with `left_out` as {reason: {count, first places}}."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The account in words, one line a fact."""
        yield f"{self.rows_read:,} rows read as {self.format}, {self.rows_written:,} written as {self.to}"
        for reason, entry in self.left_out.items():
            yield f"{entry['count']:,} left out: {reason} ({places(entry)})"
        if self.unused_columns:
            yield f"columns that are not read, and not written: {', '.join(self.unused_columns)}"


@dataclass(frozen=True)
class Conversion:
    """What is read, and the format that is written."""

    source: Source
    to: Format

    @classmethod
    def of(cls, path: str, tree: Mapping[str, Any]) -> "Conversion":
        """The conversion of a path and the words of the command line: a source's options, `to` and `registry`.

        Raises:
            RecipeError: a word is unknown or has a bad value, or the format cannot be written.
            DataError: a registry is named that has no such entry.
        """
        options = {**tree}
        to, names = options.pop("to", "messages"), options.pop("registry", None)
        for option in {"path", "weight"} & options.keys():
            raise RecipeError(f"{option}: is no option of a conversion (it was {options[option]!r})")
        try:
            one = Source(path=path, **options)
        except ValidationError as error:
            raise RecipeError(explain(error, Source)) from None
        (found,) = registry.resolved(Data(train=(one,), registry=names), (one,))
        return cls(found, writable({"type": "messages", **to} if isinstance(to, dict) else to))


def writable(to: Any) -> Format:
    """The format that `to` says. Raises RecipeError when there is none, or it can be read and not written."""
    try:
        format_ = choose(Format, to)
    except RecipeError as error:
        raise RecipeError(str(error).replace("format: ", "to: ", 1)) from None
    assert isinstance(format_, Format)
    if type(format_).write is Format.write:
        known = [name for name, kind in all_of(Format).items() if getattr(kind, "write", None) is not Format.write]
        raise RecipeError(f"to: {name_of(format_)} can be read and not written. Say one of {', '.join(known)}")
    return format_


def convert(conversion: Conversion, out: Path, replace: bool = False, strict: bool = False) -> Account:
    """Write the rows of a source to `out`, in the format `to` and as the file's suffix says.

    A row that cannot be read or held is left out and counted, but not the first, which says that the format or the
    columns are wrong; with `strict` none is. As in a run, more than a tenth of unreadable rows are too many.

    Raises:
        DataError: `out` cannot be written, no row is left, the first row (with `strict` any) cannot be converted, or
            too many cannot be read.
    """
    account = Account(conversion.source.path, to=name_of(conversion.to))
    write.write(out, _converted(conversion, write.kind_of(out), strict, account), replace)
    return account


def _converted(conversion: Conversion, kind: str, strict: bool, account: Account) -> Iterator[dict[str, Any]]:
    format_: Format | None = None
    used: set[str] = set()
    columns: dict[str, None] = {}
    unreadable: list[str] = []
    for where, row in source.read(conversion.source):
        account.rows_read += 1
        columns |= dict.fromkeys(row)
        try:
            if format_ is None:
                format_ = _format(conversion.source, row)
                account.format = name_of(format_)
            sample = _read(format_, refuse.Watched(row, used), where, unreadable)
            written = conversion.to.write(sample)
            _refuse_unwritable(written)
            _refuse_other(conversion.to, sample, write.as_read(written, kind), kind)
        except Skipped as skipped:
            note(account.left_out, skipped.reason, where)
        except DataError as error:
            if strict or account.rows_read == 1:
                raise DataError(f"{where}: {error}") from error
            note(account.left_out, error.reason, where)
        else:
            account.rows_written += 1
            yield written
    refuse.judge(account.rows_read, len(unreadable), unreadable[: refuse.SHOWN])
    account.unused_columns = [name for name in columns if name not in used]
    if not account.rows_written:
        reasons = "; ".join(f"{entry['count']:,} {reason}" for reason, entry in account.left_out.items())
        raise DataError(f"{conversion.source.path}: none of its {account.rows_read:,} rows is left: {reasons}")


def _format(one: Source, row: Mapping[str, Any]) -> Format:
    return auto.choose(row) if isinstance(one.format, auto.Auto) else one.format


def _read(format_: Format, row: Mapping[str, Any], where: str, unreadable: list[str]) -> Sample:
    try:
        return format_.read(row)
    except Skipped:
        raise
    except DataError as error:
        unreadable.append(f"{where}: {error}"[: refuse.LONGEST_MESSAGE])
        raise


def _refuse_unwritable(row: dict[str, Any]) -> None:
    """Raise DataError for a row with half a character or bytes, which parts that are no text may have."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"it cannot be written as JSON: {error}", "it cannot be written as JSON") from None


def _refuse_other(to: Format, sample: Sample, cells: dict[str, Any], kind: str) -> None:
    """Raise DataError when what a file gives back is not the sample that was written."""
    if kind in (".json", ".jsonl", ".parquet"):
        return
    try:
        same = to.read(cells) == sample
    except DataError as error:
        raise DataError(
            f"a {kind} file cannot hold it: {error}", f"a {kind} file cannot hold it: {error.reason}"
        ) from None
    if not same:
        raise DataError(
            f"a {kind} file would give another sample than {sample!r:.60}", f"a {kind} file would change it"
        )
