"""Rows into one file: json, jsonl, csv, tsv, parquet, xlsx or txt, whole or not at all.

Rows are written as they come. Where the columns of all rows must be known first (csv, tsv, xlsx, parquet), they wait
in a file of their own, and memory stays flat.
"""

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from tunesmith import atomic
from tunesmith.errors import DataError, near

Row = dict[str, Any]

COMPRESSED = ".gz"
SHEET_ROWS, CELL_CHARACTERS = 1_048_576, 32_767  # what an xlsx sheet and a cell of it hold
BATCH_ROWS = 1000  # rows of a parquet file that are Python objects at a time


def kind_of(path: Path) -> str:
    """The suffix that says how a file is written, lower case, without .gz.

    Raises:
        DataError: it is none of those that are written.
    """
    suffix = Path(path.name.lower().removesuffix(COMPRESSED)).suffix
    if suffix not in KINDS:
        raise DataError(f"{path}: its name must end in one of {', '.join(KINDS)}. {near(suffix, KINDS)}")
    if suffix in (".parquet", ".xlsx") and path.name.lower().endswith(COMPRESSED):
        raise DataError(f"{path}: {suffix} is compressed already; take {COMPRESSED} off its name")
    return suffix


def write(path: Path, rows: Iterable[Row], replace: bool = False) -> None:
    """Write a file of rows, as its name says. It appears when all are written.

    Raises:
        DataError: there is a file already and `replace` is false; or the kind cannot hold the rows.
    """
    kind = kind_of(path)
    if path.exists() and not (replace and path.is_file()):
        raise DataError(f"{path} exists. Name another file, or say --force to write in its place")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}")
    with atomic.room(path.parent, DataError, "Make room, or name another file"), atomic.written(path) as raw:
        with _compressed(raw, path) as file:
            KINDS[kind](rows, file)


@contextmanager
def _compressed(raw: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    if not path.name.lower().endswith(COMPRESSED):
        yield raw
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:  # the same bytes for the same rows
        yield file  # type: ignore[misc]


def as_read(row: Row, kind: str) -> Row:
    """The row as reading a file of this kind gives it: a table holds lists and objects as their JSON text.

    Raises:
        DataError: the kind cannot hold it.
    """
    if kind == ".txt":
        return _as_line(row)
    if kind in (".csv", ".tsv"):
        found = {name: "" if value is None else _cell(value) for name, value in row.items()}
        cells = {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}
        for name, value in cells.items():
            if "\0" in value:
                raise DataError(
                    f"column {name!r} has a NUL, which a {kind} file cannot hold", f"a NUL in a {kind} file"
                )
    elif kind == ".xlsx":
        cells = {name: _sheet_cell(name, value) for name, value in row.items()}
    else:
        return row
    if not any(value not in (None, "") for value in cells.values()):
        raise DataError(f"a row of a {kind} file cannot be empty, and {row!r:.60} is", f"empty in a {kind} file")
    return cells


def _as_line(row: Row) -> Row:
    if row.keys() != {"text"}:
        raise DataError(f"a line of a .txt file is a text alone, and the row has {', '.join(row)}", "not a text alone")
    text = row["text"]
    if "\n" in text or text != text.rstrip("\r"):
        raise DataError(f"a line of a .txt file cannot hold a line end, and {text!r:.60} does", "a line end in a text")
    if "\0" in text or not text.strip():
        raise DataError(f"a line of a .txt file cannot be blank or have a NUL, and {text!r:.60} is so", "a blank text")
    return row


def _cell(value: Any) -> Any:
    """A value as a cell of a table holds it."""
    return value if isinstance(value, str | bool | int | float) else json.dumps(value, ensure_ascii=False)


def _sheet_cell(name: str, value: Any) -> Any:
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    cell = None if value in (None, "") else _cell(value)
    if isinstance(cell, str):
        if len(cell) > CELL_CHARACTERS:
            told = f"column {name!r} has {len(cell):,} characters, and a cell of a sheet holds {CELL_CHARACTERS:,}"
            raise DataError(told, "longer than a cell of a sheet")
        if "\r" in cell or ILLEGAL_CHARACTERS_RE.search(cell):
            told = f"column {name!r} has a control character or carriage return, which a sheet does not keep"
            raise DataError(told, "a character that a sheet does not keep")
    return cell


def _json(rows: Iterable[Row], file: IO[bytes]) -> None:
    between = b"[\n"
    for row in rows:
        file.write(between + json.dumps(row, ensure_ascii=False).encode())
        between = b",\n"
    file.write(b"\n]\n" if between == b",\n" else b"[]\n")


def _jsonl(rows: Iterable[Row], file: IO[bytes]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _txt(rows: Iterable[Row], file: IO[bytes]) -> None:
    for row in rows:
        file.write(_as_line(row)["text"].encode() + b"\n")


def _csv(rows: Iterable[Row], file: IO[bytes]) -> None:
    _separated(rows, file, ",")


def _tsv(rows: Iterable[Row], file: IO[bytes]) -> None:
    _separated(rows, file, "\t")


def _separated(rows: Iterable[Row], file: IO[bytes], between: str) -> None:
    with _waiting(rows) as (columns, again):
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, delimiter=between)  # ends lines with \r\n, and so quotes both
        writer.writerow(columns)
        for row in again():
            cells = as_read(row, ".csv")
            writer.writerow([cells.get(name, "") for name in columns])
        text.detach()


@contextmanager
def _waiting(rows: Iterable[Row]) -> Iterator[tuple[list[str], Callable[[], Iterator[Row]]]]:
    """The columns of all rows in the order of their first row, and the rows, to be read any number of times."""
    with tempfile.TemporaryFile() as file:
        columns: dict[str, None] = {}
        for row in rows:
            columns |= dict.fromkeys(row)
            file.write(json.dumps(row).encode() + b"\n")

        def again() -> Iterator[Row]:
            file.seek(0)
            return map(json.loads, file)

        yield list(columns), again


def _xlsx(rows: Iterable[Row], file: IO[bytes]) -> None:
    import openpyxl
    from openpyxl.cell import WriteOnlyCell

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("rows")

    def typed(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        cell = WriteOnlyCell(sheet, value)
        cell.data_type = "s"  # or a text that begins with = is a formula, and is lost
        return cell

    try:
        with _waiting(rows) as (columns, again):
            sheet.append([typed(name) for name in columns])
            for number, row in enumerate(again(), 2):
                if number > SHEET_ROWS:
                    most = f"{SHEET_ROWS - 1:,} rows below its head"
                    raise DataError(f"a sheet holds {most}, and there are more: write .csv")
                cells = as_read(row, ".xlsx")
                sheet.append([typed(cells.get(name)) for name in columns])
        book.save(file)
    finally:
        if not sheet.closed:
            sheet.close()


def _parquet(rows: Iterable[Row], file: IO[bytes]) -> None:
    import pyarrow
    import pyarrow.parquet

    with _waiting(rows) as (columns, again):
        types = {name: _arrow_type(name, again) for name in columns}
        schema = pyarrow.schema([(name, kind or pyarrow.string()) for name, kind in types.items()])
        with pyarrow.parquet.ParquetWriter(file, schema) as writer:
            for batch in _batches(again()):
                arrays = [
                    pyarrow.array([_held(row.get(name), types[name]) for row in batch], schema.field(name).type)
                    for name in columns
                ]
                writer.write_batch(pyarrow.record_batch(arrays, schema=schema))


def _held(value: Any, kind: Any) -> Any:
    return value if kind is not None or value is None else json.dumps(value, ensure_ascii=False)


def _arrow_type(name: str, again: Callable[[], Iterator[Row]]) -> Any:
    """The Arrow type that gives every value of a column back; None where lists or objects must be JSON text.

    All objects of a column share their members in Arrow, with nulls for those they lack, which readers take out. So a
    null that a row does have would be lost, and the schemas of tools would make a type of all their members.
    """
    import pyarrow

    kind, nested = pyarrow.null(), False
    try:
        for batch in _batches(again()):
            values = [row.get(name) for row in batch]
            nested |= any(isinstance(value, list | dict) for value in values)
            own = pyarrow.schema([("", pyarrow.array(values).type)])
            both = pyarrow.unify_schemas([pyarrow.schema([("", kind)]), own], promote_options="permissive")
            kind = both.field(0).type
        exact = (
            str(kind).count("struct<") <= 1
            and "struct<>" not in str(kind)
            and all(_same(values, kind) for values in ([row.get(name) for row in batch] for batch in _batches(again())))
        )
    except (pyarrow.ArrowException, OverflowError) as error:
        if not nested:
            said = " ".join(str(error).split())
            raise DataError(
                f"column {name!r} mixes values that no parquet column holds ({said}): write .jsonl"
            ) from None
        exact = False
    return kind if exact or not nested else None


def _same(values: list[Any], kind: Any) -> bool:
    import pyarrow

    from tunesmith.data.files import without_nulls

    found = pyarrow.array(values, kind).to_pylist()
    return all(without_nulls({"": one}) == {"": value} for one, value in zip(found, values, strict=True))


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


KINDS: dict[str, Callable[[Iterable[Row], IO[bytes]], None]] = {
    ".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet, ".xlsx": _xlsx, ".txt": _txt,
}  # fmt: skip
