"""Rows of one local file, each with the number that says where in the file it stands.

Lines, CSV records, sheet rows and parquet batches are streamed. The text of a JSON array is held whole; its
items are parsed one at a time.
"""

import csv
import gzip
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from tunesmith.errors import DataError, near
from tunesmith.formats._fields import described

Rows = Iterator[tuple[int, dict[str, Any]]]

GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1\x15"  # and the first byte of a page header or of the footer
ZIP_MAGIC = b"PK\x03\x04"  # a workbook is a zip archive
BATCH_ROWS = 256  # parquet rows that are Python objects at a time
LONGEST_FIELD = 2**31 - 1  # characters in a CSV field; the csv module's own limit is 131072

_BROKEN_BOOK = (zipfile.BadZipFile, KeyError, ValueError, SyntaxError, EOFError, zlib.error)


def kind_of(path: str) -> str:
    """The suffix that says how a file is read, lower case, without .gz; empty when it is none of `KINDS`."""
    name = path.lower().removesuffix(".gz")
    return next((kind for kind in KINDS if name.endswith(kind)), "")


def rows(path: str, sheet: str | None = None) -> Rows:
    """The rows of a file in order: (number, row).

    The number is the physical line of txt, jsonl and csv (where the record begins), the row of a spreadsheet,
    and the item of a JSON array or parquet file; all count from 1. What the content says outweighs the
    suffix: gzip or not, array or lines, workbook or parquet.

    Raises:
        DataError: the file cannot be read, or is not what its suffix says; with the place of the fault.
    """
    try:
        with _opened(path) as file:
            yield from KINDS[_kind_by_content(file, path)](file, path, sheet)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: its gzip data is broken or cut off ({error}); fetch or compress it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The file's bytes, decompressed: a binary file with `peek`."""
    with open(path, "rb") as raw:
        if raw.peek(2)[:2] == GZIP_MAGIC:
            with gzip.open(raw) as file:
                yield file
        elif path.lower().endswith(".gz"):
            raise DataError(f"{path} is named .gz and is not gzip data; take .gz off its name or compress it")
        else:
            yield raw


def _kind_by_content(file: Any, path: str) -> str:
    head = file.peek(len(PARQUET_MAGIC))
    if head.startswith(PARQUET_MAGIC):
        return ".parquet"
    return ".xlsx" if head.startswith(ZIP_MAGIC) else kind_of(path)


@contextmanager
def _seekable(file: Any) -> Iterator[IO[bytes]]:
    """The same bytes with random access, which formats with a directory at their end need."""
    if not isinstance(file, gzip.GzipFile):
        yield file
        return
    with tempfile.TemporaryFile() as whole:
        shutil.copyfileobj(file, whole)
        yield whole


def _lines(file: Any, path: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, with or without a byte order mark, with their ends."""
    for number, raw in enumerate(file, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number} is not UTF-8 (byte {error.start + 1} of the line is "
                f"0x{error.object[error.start]:02x}); save the file as UTF-8"
            ) from None
        yield number, line


def _text(file: Any, path: str, sheet: str | None) -> Rows:
    for number, line in _lines(file, path):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def _json(file: Any, path: str, sheet: str | None) -> Rows:
    """Objects of one array, or one object a line; the first character tells."""
    every = _lines(file, path)
    lines = ((number, line) for number, line in every if line.strip())
    for first, line in lines:
        if line.lstrip().startswith("["):
            text = "".join(("\n" * (first - 1), line, *(rest for _, rest in every)))
            for number, row in enumerate(_items(text, path), 1):
                yield number, _checked(row, f"{path}:{number}")
            return
        yield first, _object(line, path, first)
        break
    for number, line in lines:
        yield number, _object(line, path, number)


def _object(line: str, path: str, number: int) -> dict[str, Any]:
    line = line.rstrip()
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        hint = "; an object is on one line, or the file is one array" if error.pos >= len(line) else ""
        raise DataError(f"{path}:{number} is not valid JSON: {error.msg} (column {error.colno}){hint}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, or too deep a nesting
        raise DataError(f"{path}:{number} is not JSON that can be read: {error}") from None
    return _checked(row, f"{path}:{number}")


def _items(text: str, path: str) -> Iterator[Any]:
    """The values in a JSON array, parsed one at a time; what the parser refuses is named by its line."""
    decoder = json.JSONDecoder()
    at = _after_space(text, text.index("[") + 1)
    number = 0
    try:
        while number or not text.startswith("]", at):
            value, at = decoder.raw_decode(text, at)
            number += 1
            yield value
            at = _after_space(text, at)
            if text.startswith("]", at):
                break
            if not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at = _after_space(text, at + 1)
        at = _after_space(text, at + 1)
        if at < len(text):
            raise json.JSONDecodeError("Text after the end of the array", text, at)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}, item {number + 1}"
        raise DataError(f"{path}:{error.lineno} is not valid JSON: {error.msg} ({place})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: item {number + 1} is not JSON that can be read: {error}") from None


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in " \t\r\n":
        at += 1
    return at


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where} must be an object, of column names and values, and is {described(row)}")
    return row


def _csv(file: Any, path: str, sheet: str | None) -> Rows:
    return _table(_records(file, path), path)


def _records(file: Any, path: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file with the line each begins on; all have as many fields as the first."""
    reader = csv.reader((line for _, line in _lines(file, path)), strict=True)
    fields = 0
    while True:
        start = reader.line_num + 1
        # The module has one limit, which is global: it is raised for this call alone.
        limit = csv.field_size_limit(LONGEST_FIELD)
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}:{start} is not a valid CSV record: {error}") from None
        finally:
            csv.field_size_limit(limit)
        if record is None:
            return
        fields = fields or len(record)
        if record and len(record) != fields:
            raise DataError(f"{path}:{start} has {len(record)} fields and the header has {fields}; quote commas")
        yield start, record


def _xlsx(file: Any, path: str, sheet: str | None) -> Rows:
    import openpyxl

    with _seekable(file) as whole:
        try:
            book = openpyxl.load_workbook(whole, read_only=True, data_only=True)
        except _BROKEN_BOOK as error:
            raise DataError(f"{path} is not an xlsx workbook: {error}") from None
        try:
            sheets = {one.title: one for one in book.worksheets}
            title = sheet or next(iter(sheets), "")
            if title not in sheets:
                raise DataError(f"{path} has no sheet {title!r}. {near(title, sheets)}")
            yield from _table(_cells(sheets[title], path), path)
        finally:
            book.close()


def _cells(sheet: Any, path: str) -> Iterator[tuple[int, Sequence[Any]]]:
    sheet.reset_dimensions()  # the stated size is wrong in files of some programs, and would cut rows off
    try:
        yield from enumerate(sheet.iter_rows(values_only=True), 1)
    except _BROKEN_BOOK as error:
        raise DataError(f"{path}: sheet {sheet.title!r} is broken: {error}") from None


def _table(records: Iterator[tuple[int, Sequence[Any]]], path: str) -> Rows:
    """Rows below one head row. Empty rows are skipped, and columns without a name are left out."""
    header: list[tuple[int, str]] = []
    for number, record in records:
        if all(cell in (None, "") for cell in record):
            continue
        if not header:
            header = _header(record, f"{path}:{number}")
            continue
        yield number, {name: record[at] if at < len(record) else None for at, name in header}


def _header(record: Sequence[Any], where: str) -> list[tuple[int, str]]:
    header = [(at, str(cell)) for at, cell in enumerate(record) if cell not in (None, "")]
    seen = [name for _, name in header]
    twice = sorted({name for name in seen if seen.count(name) > 1})
    if twice:
        raise DataError(f"{where}: the column {twice[0]!r} stands twice in the header; give each its own name")
    return header


def _parquet(file: Any, path: str, sheet: str | None) -> Rows:
    import pyarrow
    import pyarrow.parquet

    number = 0
    with _seekable(file) as whole:
        try:
            for batch in pyarrow.parquet.ParquetFile(whole).iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, without_nulls(row)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())
            raise DataError(f"{path} is not a parquet file that can be read (after row {number}): {said}") from None


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A row of an Arrow table without the nulls that Arrow writes for members an object does not have.

    All objects of a column share their members there. The row's own columns keep their nulls.
    """
    return {key: _members(value) for key, value in row.items()}


def _members(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _members(inner) for key, inner in value.items() if inner is not None}
    return [_members(inner) for inner in value] if isinstance(value, list) else value


KINDS: dict[str, Callable[[Any, str, str | None], Rows]] = {
    ".json": _json, ".jsonl": _json, ".csv": _csv, ".parquet": _parquet, ".xlsx": _xlsx, ".txt": _text,
}  # fmt: skip
