"""Rows of one file, each with the number that says where in the file it stands.

Lines, CSV records, sheet rows and batches of parquet and Arrow are streamed. The text of a JSON array is held whole;
its items are parsed one at a time.
"""

import csv
import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tunesmith.data import remote
from tunesmith.data.unpacked import opened, seekable, without_suffix
from tunesmith.errors import DataError, near
from tunesmith.formats._fields import described

Rows = Iterator[tuple[int, dict[str, Any]]]

PARQUET_MAGIC = b"PAR1\x15"  # and the first byte of a page header or of the footer
ARROW_MAGIC = b"ARROW1"  # an Arrow file; a stream of Arrow has none that is its own
ZIP_MAGIC = b"PK\x03\x04"  # a workbook is a zip archive
BATCH_ROWS = 256  # rows of parquet or Arrow that are Python objects at a time
LONGEST_FIELD = 2**31 - 1  # characters in a CSV field; the csv module's own limit is 131072

_BROKEN_BOOK = (zipfile.BadZipFile, KeyError, ValueError, SyntaxError, EOFError, zlib.error)


def kind_of(path: str) -> str:
    """The suffix that says how a file is read, lower case, without .gz or .zst; empty when it is none of `KINDS`."""
    name = path.lower()
    if remote.is_remote(path):
        name = name.partition("?")[0].partition("#")[0]
    name = without_suffix(name)
    return next((kind for kind in KINDS if name.endswith(kind)), "")


def rows(path: str, sheet: str | None = None) -> Rows:
    """The rows of a file in order: (number, row).

    The number is the physical line of txt, jsonl, csv and tsv (where the record begins), the row of a spreadsheet,
    and the item of a JSON array, parquet or Arrow file; all count from 1. What the content says outweighs the
    suffix: compressed or not, array or lines, workbook, parquet or Arrow.

    Raises:
        DataError: the file cannot be read, or is not what its suffix says; with the place of the fault.
    """
    try:
        with opened(path) as file:
            yield from KINDS[_kind_by_content(file, path)](file, path, sheet)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _kind_by_content(file: Any, path: str) -> str:
    head = file.peek(len(ARROW_MAGIC))
    for magic, kind in ((PARQUET_MAGIC, ".parquet"), (ARROW_MAGIC, ".arrow")):
        if head.startswith(magic):
            return kind
    return ".xlsx" if head.startswith(ZIP_MAGIC) else kind_of(path)


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
        if "\0" in line:
            raise DataError(
                f"{path}:{number} has a NUL (character {line.index(chr(0)) + 1} of the line): the file is damaged, "
                "or in UTF-16; save it as UTF-8"
            )
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
        row = DECODER.decode(line)
    except json.JSONDecodeError as error:
        hint = "; an object is on one line, or the file is one array (names for data sets go in data.registry)"
        hint = hint if error.pos >= len(line) else ""
        raise DataError(f"{path}:{number} is not valid JSON: {error.msg} (column {error.colno}){hint}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, or too deep a nesting
        raise DataError(f"{path}:{number} is not JSON that can be read: {error}") from None
    return _checked(row, f"{path}:{number}")


def _items(text: str, path: str) -> Iterator[Any]:
    """The values in a JSON array, parsed one at a time; what the parser refuses is named by its line."""
    at = _after_space(text, text.index("[") + 1)
    number = 0
    try:
        while number or not text.startswith("]", at):
            value, at = DECODER.raw_decode(text, at)
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


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some pairs, as json's `object_pairs_hook`. Raises ValueError for a key that stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
        raise ValueError(f"the key {twice!r} stands twice in an object, and one value would be lost")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=once)


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in " \t\r\n":
        at += 1
    return at


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where} must be an object, of column names and values, and is {described(row)}")
    return row


def _csv(file: Any, path: str, sheet: str | None) -> Rows:
    return _table(_records(file, path, ","), path)


def _tsv(file: Any, path: str, sheet: str | None) -> Rows:
    return _table(_records(file, path, "\t"), path)


def _records(file: Any, path: str, between: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV or TSV file with the line each begins on; all have as many fields as the first."""
    kind, name = ("CSV", "commas") if between == "," else ("TSV", "tabs")
    reader = csv.reader((line for _, line in _lines(file, path)), strict=True, delimiter=between)
    fields = 0
    while True:
        start = reader.line_num + 1
        # The module has one limit, which is global: it is raised for this call alone.
        limit = csv.field_size_limit(LONGEST_FIELD)
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}:{start} is not a valid {kind} record: {error}") from None
        finally:
            csv.field_size_limit(limit)
        if record is None:
            return
        fields = fields or len(record)
        if record and len(record) != fields:
            raise DataError(f"{path}:{start} has {len(record)} fields and the header has {fields}; quote {name}")
        yield start, record


def _xlsx(file: Any, path: str, sheet: str | None) -> Rows:
    import openpyxl

    with seekable(file) as whole:
        try:
            book = openpyxl.load_workbook(whole, read_only=True, data_only=True)
        except _BROKEN_BOOK as error:
            raise DataError(f"{path} is not an xlsx workbook: {' '.join(str(error).split())}") from None
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
        if len(header) > 1 and all(at < len(record) and record[at] == name for at, name in header):
            raise DataError(f"{path}:{number} is the header again ({header[0][1]}, ...); take the line out")
        yield number, {name: record[at] if at < len(record) else None for at, name in header}


def _header(record: Sequence[Any], where: str) -> list[tuple[int, str]]:
    header = [(at, str(cell)) for at, cell in enumerate(record) if cell not in (None, "")]
    _refuse_twice([name for _, name in header], f"{where}: ")
    return header


def _refuse_twice(names: Sequence[str], where: str) -> None:
    twice = sorted(name for name, number in Counter(names).items() if number > 1)
    if twice:
        raise DataError(f"{where}the column {twice[0]!r} stands twice in the header; give each its own name")


def _parquet(file: Any, path: str, sheet: str | None) -> Rows:
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        with seekable(file) as whole:
            table = pyarrow.parquet.ParquetFile(whole)
            _refuse_twice(table.schema_arrow.names, f"{path}: ")
            yield from table.iter_batches(batch_size=BATCH_ROWS)

    return _arrow_rows(batches(), f"{path} is not a parquet file")


def _arrow(file: Any, path: str, sheet: str | None) -> Rows:
    """Rows of Arrow's file or stream, as `datasets` writes them too; what lies on disk as it is is mapped."""
    import pyarrow

    def batches() -> Iterator[Any]:
        on_disk = isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO)
        whole = pyarrow.memory_map(path) if on_disk else pyarrow.PythonFile(file, "r")
        if not file.peek(len(ARROW_MAGIC)).startswith(ARROW_MAGIC):
            reader = pyarrow.ipc.open_stream(whole)
            _refuse_twice(reader.schema.names, f"{path}: ")
            yield from reader
            return
        with seekable(file) as found:
            table = pyarrow.ipc.open_file(whole if on_disk else found)
            _refuse_twice(table.schema.names, f"{path}: ")
            yield from (table.get_batch(number) for number in range(table.num_record_batches))

    return _arrow_rows(batches(), f"{path} is not an Arrow file")


def _arrow_rows(batches: Iterator[Any], refusal: str) -> Rows:
    """The rows of record batches, of which few are Python objects at a time."""
    import pyarrow

    number = 0
    try:
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for row in batch.slice(start, BATCH_ROWS).to_pylist():
                    number += 1
                    yield number, without_nulls(row)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{refusal} that can be read (after row {number}): {said}") from None


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
    ".json": _json, ".jsonl": _json, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet, ".arrow": _arrow,
    ".xlsx": _xlsx, ".txt": _text,
}  # fmt: skip
