"""Every kind of file gives its rows under the numbers a person would count; every broken one says where."""

import csv
import gzip
import json
import os
import re
import zipfile
from pathlib import Path

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from tunesmith.data import files
from tunesmith.errors import DataError


def rows(path: Path, sheet: str | None = None) -> list[tuple[int, dict]]:
    return list(files.rows(str(path), sheet))


def error(path: Path, sheet: str | None = None) -> str:
    """The one line that reading the file ends with."""
    with pytest.raises(DataError) as caught:
        rows(path, sheet)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message.replace(str(path), "FILE")


def workbook(path: Path, **sheets: list[list]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for title, records in sheets.items():
        sheet = book.create_sheet(title)
        for number, record in enumerate(records, 1):
            for column, cell in enumerate(record, 1):
                sheet.cell(number, column).value = cell
    book.save(path)
    return path


TEXT_KINDS = {
    "lines.jsonl": ('{"a": "é"}\n\n{"a": 2}\n', [(1, {"a": "é"}), (3, {"a": 2})]),
    "array.json": ('[\n  {"a": "é"},\n\n  {"a": [2]}\n]\n', [(1, {"a": "é"}), (2, {"a": [2]})]),
    "array-in.jsonl": ('\n[{"a": 1}, {"a": 2}]', [(1, {"a": 1}), (2, {"a": 2})]),
    "lines-in.json": ('{"a": 1}\n{"a": 2}', [(1, {"a": 1}), (2, {"a": 2})]),
    "documents.txt": (
        "  one é\r\n \n\ntwo\u2028still two\n",
        [(1, {"text": "  one é"}), (4, {"text": "two\u2028still two"})],
    ),
    "unnamed.csv": (",a,\n0,1,2\n", [(2, {"a": "1"})]),
    "table.csv": (
        'a,b\r\n1,"two\r\nlines, one ""field"""\r\n\r\n,\r\n3,\r\n',
        [(2, {"a": "1", "b": 'two\r\nlines, one "field"'}), (6, {"a": "3", "b": ""})],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXT_KINDS)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with-mark"])
@pytest.mark.parametrize("packed", [False, True], ids=["as-is", "gzip"])
def test_a_text_file_gives_its_rows_and_their_places(tmp_path, name, mark, packed):
    text, expected = TEXT_KINDS[name]
    content = (mark + text).encode()
    path = tmp_path / (name + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(content) if packed else content)
    assert rows(path) == expected


@pytest.mark.parametrize("packed", [False, True], ids=["as-is", "gzip"])
def test_parquet_rows_are_counted_over_row_groups_and_batches(tmp_path, packed):
    count = files.BATCH_ROWS + 3
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": range(count)}), path, row_group_size=100)
    if packed:
        path = tmp_path / "rows.parquet.gz"
        path.write_bytes(gzip.compress((tmp_path / "rows.parquet").read_bytes()))
    assert rows(path) == [(number, {"a": number - 1}) for number in range(1, count + 1)]


def test_parquet_objects_keep_only_the_members_they_were_written_with(tmp_path):
    written = [{"m": [{"role": "user"}, {"role": "tool", "id": "1"}], "n": None}, {"m": [], "n": {"x": 0}}]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(written), path)
    assert [row for _, row in rows(path)] == written


@pytest.mark.parametrize("packed", [False, True], ids=["as-is", "gzip"])
def test_a_sheet_gives_its_rows_under_the_numbers_it_shows(tmp_path, packed):
    records = [["Question", None, "Answer"], ["q1", "lost", 7], [], [None, "", None], ["q2", None, None]]
    path = workbook(tmp_path / "book.xlsx", First=records, Second=[["x"], ["y"]])
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert rows(path) == [(2, {"Question": "q1", "Answer": 7}), (5, {"Question": "q2", "Answer": None})]
    assert rows(path, "Second") == [(2, {"x": "y"})]


def test_a_sheet_is_read_to_its_end_whatever_size_it_states(tmp_path):
    path = workbook(tmp_path / "book.xlsx", First=[["a", "b"], [1, 2], [3, 4]])
    cut = tmp_path / "cut.xlsx"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(cut, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'<dimension ref="A1:B3"', b'<dimension ref="A1"'))
    assert b'<dimension ref="A1"' in zipfile.ZipFile(cut).read("xl/worksheets/sheet1.xml")
    assert rows(cut) == [(2, {"a": 1, "b": 2}), (3, {"a": 3, "b": 4})]


def test_content_outweighs_the_suffix(tmp_path):
    packed = tmp_path / "packed.jsonl"
    packed.write_bytes(gzip.compress(b'{"a": 1}'))
    assert rows(packed) == [(1, {"a": 1})]
    table = tmp_path / "table.json"
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), table)
    assert rows(table) == [(1, {"a": 1})]
    book = workbook(tmp_path / "book.xlsx", S=[["a"], [1]]).rename(tmp_path / "book.csv")
    assert rows(book) == [(2, {"a": 1})]


def test_rows_come_one_at_a_time(tmp_path):
    for name, start in {"a.jsonl": '{"a": 1}\n', "b.json": '[{"a": 1},\n', "c.csv": "a\n1\n"}.items():
        path = tmp_path / name
        path.write_text(start + '"broken')
        stream = files.rows(str(path))
        assert next(stream)[1] in ({"a": 1}, {"a": "1"})
        with pytest.raises(DataError, match=f"{name}:[23] "):
            next(stream)


def test_a_long_csv_field_is_read_and_the_module_limit_is_left_alone(tmp_path):
    limit = csv.field_size_limit()
    assert limit == 131_072
    document = "word " * 100_000
    path = tmp_path / "long.csv"
    path.write_text(f'text\n"{document}"\n')
    assert rows(path) == [(2, {"text": document})]
    assert csv.field_size_limit() == limit


BROKEN = {
    ("a.jsonl", b'{"a": 1}\n{"a": }\n'): r"FILE:2 is not valid JSON: Expecting value \(column 7\)$",
    (
        "b.jsonl",
        b"\n{\n",
    ): r"FILE:2 is not valid JSON: .* \(column 2\); an object is on one line, or the file is",
    ("c.jsonl", b'{"a": 1}\n[2]\n'): r"FILE:2 must be an object, .* is a list \(\[2\]\)",
    ("d.jsonl", b'{"a": ' + b"9" * 5000 + b"}"): r"FILE:1 is not JSON that can be read: Exceeds the limit",
    ("e.jsonl", b'{"a": ' + b"[" * 100_000): r"FILE:1 is not JSON that can be read: .*recursion",
    ("f.json", b'[{"a": 1},\n {"a": 2}\n {"a": 3}]'): r"FILE:3 .*Expecting ',' or '\]' \(column 2, item 3\)",
    ("F.json", b'\n\n[{"a": 1} 2]'): r"FILE:3 is not valid JSON: Expecting ',' or '\]' \(column 11, item 2\)",
    ("g.json", b'[\n {"a": 1},\n]'): r"FILE:3 is not valid JSON: .* \(column 1, item 2\)",
    ("h.json", b'[{"a": 1}'): r"FILE:1 is not valid JSON: Expecting ',' or '\]' \(column 10, item 2\)",
    ("i.json", b'[{"a": 1}]\n[]'): r"FILE:2 is not valid JSON: Text after the end of the array",
    ("j.json", b'[{"a": 1}, null]'): r"FILE:2 must be an object, .* is null",
    ("k.json", b"[" * 100_000): r"FILE: item 1 is not JSON that can be read: .*recursion",
    ("l.txt", b"fine\nna\xefve\n"): r"FILE:2 is not UTF-8 \(byte 3 of the line is 0xef\); save",
    ("m.csv", "a,b\n".encode("utf-16")): r"FILE:1 is not UTF-8 \(byte 1 of the line is 0xff\)",
    ("n.csv", b'a,b\n1,"2\n3,4\n'): r"FILE:2 is not a valid CSV record: unexpected end of data",
    ("o.csv", b"a,b\n1,2\n\n1,2,3\n"): r"FILE:4 has 3 fields and the header has 2",
    ("p.csv", b"a,b,a\n1,2,3\n"): r"FILE:1: the column 'a' stands twice",
    ("q.jsonl.gz", b'{"a": 1}'): r"FILE is named .gz and is not gzip data",
    ("r.jsonl.gz", gzip.compress(b'{"a": 1}')[:-9]): r"FILE: its gzip data is broken or cut off",
    ("s.txt.gz", gzip.compress(b"text")[:-8] + b"\0" * 8): r"FILE: its gzip data is broken .*CRC",
    ("t.xlsx", b"no workbook"): r"FILE is not an xlsx workbook: ",
    ("u.parquet", b"PAR1\x15 but no table"): r"FILE is not a parquet file .*after row 0\): ",
    ("v.parquet", b""): r"FILE is not a parquet file .*after row 0\): ",
}


@pytest.mark.parametrize(("name", "content"), BROKEN, ids=[name for name, _ in BROKEN])
def test_a_broken_file_says_where_and_what(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert re.search(BROKEN[name, content], error(path))


def test_a_zip_that_is_no_workbook_and_a_broken_sheet(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.xlsx", "w") as other:
        other.writestr("a.txt", "x")
    assert error(tmp_path / "other.xlsx").startswith("FILE is not an xlsx workbook: ")

    whole = workbook(tmp_path / "whole.xlsx", Only=[["a"], [1]])
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "cut.xlsx", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[:-40] if name.endswith("sheet1.xml") else content)
    assert error(tmp_path / "cut.xlsx").startswith("FILE: sheet 'Only' is broken: ")


def test_a_sheet_that_is_not_there_is_named_with_its_neighbours(tmp_path):
    path = workbook(tmp_path / "book.xlsx", DrugQA=[["a"], [1]], Notes=[["b"]])
    assert error(path, "drugQA") == "FILE has no sheet 'drugQA'. Did you mean 'DrugQA'?"


def test_a_parquet_column_that_is_not_utf8(tmp_path):
    path = tmp_path / "rows.parquet"
    raw = pyarrow.array([b"ok", b"\xff"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"a": text}), path)
    assert "not a parquet file that can be read" in error(path)


def test_a_file_without_permission(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a": 1}))
    path.chmod(0)
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)  # root may read everything: be nobody meanwhile
    except OSError:
        pytest.skip("this container has no other user than root")
    try:
        assert error(path) == "FILE cannot be read: Permission denied"
    finally:
        os.seteuid(user)


def test_a_file_that_the_system_fails_to_read(tmp_path):
    path = tmp_path / "memory.txt"  # opens, and fails on the first read
    path.symlink_to("/proc/self/mem")
    if not path.is_file():
        pytest.skip("this system has no /proc")
    assert error(path) == "FILE cannot be read: Input/output error"


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "a.json": ".json",
        "A.JSONL.GZ": ".jsonl",
        "a.b.csv": ".csv",
        "a.gz": "",
        "a.xls": "",
        "json": "",
    }.items(),
)
def test_the_suffix_says_the_kind(name, kind):
    assert files.kind_of(name) == kind
