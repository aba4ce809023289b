"""Every kind of file gives its rows under the numbers a person would count; every broken one says where."""

import csv
import gzip
import json
import os
import re
import time
import tracemalloc
import zipfile
from pathlib import Path

import datasets
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


PACK = {"": bytes, ".gz": gzip.compress, ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True)}

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
    "table.tsv": ('a\tb\n1, 2\t"tab\t"\n\na\t\n', [(2, {"a": "1, 2", "b": "tab\t"}), (4, {"a": "a", "b": ""})]),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXT_KINDS)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with-mark"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"], ids=["as-is", "gzip", "zstd"])
def test_a_text_file_gives_its_rows_and_their_places(tmp_path, name, mark, packed):
    text, expected = TEXT_KINDS[name]
    path = tmp_path / (name + packed)
    path.write_bytes(PACK[packed]((mark + text).encode()))
    assert rows(path) == expected


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"], ids=["as-is", "gzip", "zstd"])
@pytest.mark.parametrize("kind", ["parquet", "file.arrow", "stream.arrow"])
def test_rows_of_tables_are_counted_over_their_batches(tmp_path, kind, packed):
    count = files.BATCH_ROWS + 3
    plain = table_file(tmp_path / f"rows.{kind}", pyarrow.table({"a": range(count)}))
    path = tmp_path / f"rows.{kind}{packed}"
    path.write_bytes(PACK[packed](plain.read_bytes()))
    expected = [(number, {"a": number - 1}) for number in range(1, count + 1)]
    assert rows(path) == expected
    if kind != "stream.arrow":  # which begins with nothing that is its own
        assert rows(path.rename(tmp_path / "named.jsonl")) == expected


def test_arrow_as_datasets_writes_it(tmp_path):
    turns = [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "yo"}]]
    datasets.Dataset.from_dict({"messages": turns}).save_to_disk(tmp_path / "set")
    (path,) = (tmp_path / "set").glob("*.arrow")
    assert rows(path) == [(number, {"messages": one}) for number, one in enumerate(turns, 1)]


def table_file(path: Path, table: pyarrow.Table) -> Path:
    """A table as the kind of file that the name says, in batches of 100 rows."""
    if path.name.endswith("parquet"):
        pyarrow.parquet.write_table(table, path, row_group_size=100)
        return path
    writer = pyarrow.ipc.new_file if path.name.endswith("file.arrow") else pyarrow.ipc.new_stream
    with writer(path, table.schema) as out:
        out.write_table(table, max_chunksize=100)
    return path


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


@pytest.mark.parametrize("name", ["long.jsonl", "long.json", "long.csv", "long.tsv", "long.txt", "long.jsonl.zst"])
def test_a_field_of_5_megabytes_is_read_whole(tmp_path, name):
    document = "a word and " * 500_000
    lines = {".jsonl": json.dumps({"text": document}), ".json": json.dumps([{"text": document}]), ".txt": document}
    content = lines.get(files.kind_of(name), f"text\n{document}\n").encode()
    (tmp_path / name).write_bytes(PACK[".zst"](content) if name.endswith("zst") else content)
    ((_, row),) = rows(tmp_path / name)
    assert len(document) > 5_000_000 and row == {"text": document}


def test_memory_is_flat_in_the_rows_of_compressed_lines(tmp_path):
    path = tmp_path / "many.jsonl.zst"
    line = json.dumps({"text": "x" * 1000}).encode() + b"\n"
    path.write_bytes(PACK[".zst"](line * 20_000))  # 20 MB of text
    tracemalloc.start()
    try:
        assert sum(1 for _ in files.rows(str(path))) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_a_table_row_of_nulls_keeps_its_number_and_its_columns(tmp_path):
    path = table_file(tmp_path / "rows.parquet", pyarrow.table({"a": ["x", None, "z"], "b": [1, None, None]}))
    assert rows(path)[1] == (2, {"a": None, "b": None})


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
    ("w.arrow", b""): r"FILE is not an Arrow file .*after row 0\): ",
    ("w2.arrow", b"ARROW1 but no table"): r"FILE is not an Arrow file .*after row 0\): ",
    ("w3.arrow", b"no Arrow at all"): r"FILE is not an Arrow file .*after row 0\): ",
    ("x.jsonl.zst", b'{"a": 1}'): r"FILE is named .zst and is not zstd data",
    ("x2.jsonl.zst", PACK[".zst"](b'{"a": 1}')[:-3]): r"FILE: its zstd data is broken or cut off \(Truncated",
    ("x3.csv", b"\x28\xb5\x2f\xfd no frame"): r"FILE: its zstd data is broken or cut off",
    ("x4.jsonl.gz", b""): r"FILE is named .gz and is not gzip data",
    ("y.jsonl", b'{"a": 1}\n{"a": "b\0c"}\n'): r"FILE:2 has a NUL \(character 9 of the line\)",
    ("y2.csv", "a,b\n".encode("utf-16-le")): r"FILE:1 has a NUL \(character 2 of the line\).* in UTF-16",
    ("y3.txt", b"one\ntwo\0\n"): r"FILE:2 has a NUL",
    ("z.jsonl", b'{"a": 1, "b": 2}\n{"a": 1, "b": 2, "a": 3}'): r"FILE:2 .*the key 'a' stands twice in an object",
    ("z2.json", b'[{"a": 1},\n {"m": [{"role": 1, "role": 2}]}]'): r"FILE: item 2 .*the key 'role' stands twice",
    ("z3.jsonl", b"[[1, 2], [3]]"): r"FILE:1 must be an object, .* is a list \(\[1, 2\]\)",
    ("z4.csv", b"a,b\n1,2\na,b\n3,4\n"): r"FILE:3 is the header again \(a, ...\); take the line out",
    ("z5.tsv", b"a\tb\n1\t2\t3\n"): r"FILE:2 has 3 fields and the header has 2; quote tabs",
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

    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "two.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"?" * name.endswith("sheet1.xml") + old.read(name))
    assert error(tmp_path / "two.xlsx").startswith("FILE is not an xlsx workbook: ")


def test_very_many_columns_are_named_once(tmp_path):
    """Time is linear in them: with 20,000 a comparison of each with each takes seconds."""
    names = [f"c{number}" for number in range(20_000)]
    path = tmp_path / "wide.csv"
    path.write_text(f"{','.join(names)}\n{','.join(names[::-1])}\n")
    started = time.process_time()
    ((_, row),) = rows(path)
    assert list(row) == names and time.process_time() - started < 1


def test_a_sheet_that_is_not_there_is_named_with_its_neighbours(tmp_path):
    path = workbook(tmp_path / "book.xlsx", DrugQA=[["a"], [1]], Notes=[["b"]])
    assert error(path, "drugQA") == "FILE has no sheet 'drugQA'. Did you mean 'DrugQA'?"


@pytest.mark.parametrize("kind", ["parquet", "file.arrow", "stream.arrow"])
def test_a_table_whose_column_stands_twice(tmp_path, kind):
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    assert "the column 'a' stands twice" in error(table_file(tmp_path / f"rows.{kind}", table))


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
        "a.tsv.zst": ".tsv",
        "a.arrow": ".arrow",
        "https://b.c/a.jsonl.gz?download=true": ".jsonl",
        "a.jsonl?download=true": "",
        "a.b.csv": ".csv",
        "a.gz": "",
        "a.xls": "",
        "json": "",
    }.items(),
)
def test_the_suffix_says_the_kind(name, kind):
    assert files.kind_of(name) == kind
