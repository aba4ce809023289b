"""A file of each kind gives back the rows that were written, is whole or not there, or says what it cannot hold."""

import gzip
import json

import openpyxl
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import files
from tunesmith.data.write import KINDS, SHEET_ROWS, as_read, kind_of, write
from tunesmith.errors import DataError

TALK = [{"role": "user", "content": 'Say "a,b\tc"\nand =1+1.'}, {"role": "assistant", "content": "é 你好 🙂"}]
ROWS = [
    {"text": "=1+1", "label": True, "messages": TALK},
    {"text": " 007 ", "label": False, "tools": [{"name": "f", "parameters": {}}]},
    {"text": "line\nline", "label": True, "messages": TALK[:1], "tools": []},
]
TABLES = (".csv", ".tsv", ".xlsx")


def read(path):
    return [row for _, row in files.rows(str(path))]


def parsed(row):
    """A row of a table with what is a list as one, and without the cells that other rows alone have."""
    cells = {name: value for name, value in row.items() if value not in (None, "")}
    return {
        name: json.loads(value) if isinstance(value, str) and name not in ("text", "label") else value
        for name, value in cells.items()
    }


@pytest.mark.parametrize("name", [f"rows{kind}" for kind in KINDS if kind != ".txt"] + ["rows.JSONL.gz", "rows.csv.gz"])
def test_every_kind_gives_the_rows_back(tmp_path, name):
    write(tmp_path / name, iter(ROWS))
    found, kind = read(tmp_path / name), kind_of(tmp_path / name)
    if kind in (*TABLES, ".parquet"):
        assert list(found[0]) == ["text", "label", "messages", "tools"]  # as they come first
        found = [parsed({name: value for name, value in row.items() if value is not None}) for row in found]
        as_text = {True: "true", False: "false"} if kind in (".csv", ".tsv") else {True: True, False: False}
        assert found == [row | {"label": as_text[row["label"]]} for row in ROWS]
    else:
        assert found == ROWS
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_lines_of_text_come_back(tmp_path):
    write(tmp_path / "rows.txt", [{"text": "a\rb "}, {"text": "你好"}])
    assert read(tmp_path / "rows.txt") == [{"text": "a\rb "}, {"text": "你好"}]


def test_the_same_rows_are_the_same_compressed_bytes(tmp_path):
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        write(tmp_path / name, ROWS)
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.jsonl.gz").read_bytes()).count(b"\n") == 3


def test_no_rows_are_an_empty_list(tmp_path):
    write(tmp_path / "rows.json", [])
    assert json.loads((tmp_path / "rows.json").read_text()) == []


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@settings(max_examples=50)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=4), st.sampled_from(TABLES))
def test_any_text_comes_back_from_a_table_or_is_refused(tmp_path_factory, cells, kind):
    rows = [{"one": one, "two": two} for one, two in cells]
    kept = []
    for row in rows:
        try:
            assert as_read(row, kind) == row
            kept.append(row)
        except DataError as error:
            assert kind == ".xlsx" and error.reason == "a character that a sheet does not keep"
    path = tmp_path_factory.mktemp("any") / f"rows{kind}"
    if kept:
        write(path, kept)
        assert read(path) == kept


def test_a_list_of_plain_objects_is_one_in_parquet_and_other_lists_are_text(tmp_path):
    path = tmp_path / "rows.parquet"
    tools = [{"name": "f", "parameters": {"type": "object"}}]
    write(path, [{"talk": TALK, "tools": tools, "nulls": [{"a": None}]}, {"talk": TALK[:1], "n": 1}, {"n": 0.5}])
    kinds = {field.name: str(field.type) for field in pyarrow.parquet.read_schema(path)}
    assert kinds["talk"].startswith("list<") and "role: string" in kinds["talk"]
    assert (kinds["tools"], kinds["nulls"], kinds["n"]) == ("string", "string", "double")
    first, second, _ = read(path)
    assert first["talk"] == TALK and second["talk"] == TALK[:1]  # no member is added, none is lost
    assert json.loads(first["tools"]) == tools and json.loads(first["nulls"]) == [{"a": None}]


def test_a_column_of_texts_and_numbers_is_no_parquet_column(tmp_path):
    with pytest.raises(DataError, match=r"column 'a' mixes values .*: write \.jsonl"):
        write(tmp_path / "rows.parquet", [{"a": "x"}, {"a": 1}])
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_looks_like_a_formula_is_a_text_to_others_too(tmp_path):
    write(tmp_path / "rows.xlsx", ROWS)
    sheet = openpyxl.load_workbook(tmp_path / "rows.xlsx").worksheets[0]
    assert (sheet["A2"].value, sheet["A2"].data_type, sheet["B2"].value) == ("=1+1", "s", True)


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        (".xlsx", {"a": "x" * 32_768}, "longer than a cell of a sheet"),
        (".xlsx", {"a": "a\r\nb"}, "a character that a sheet does not keep"),
        (".xlsx", {"a": "a\x07b"}, "a character that a sheet does not keep"),
        (".csv", {"a": "a\0b"}, "a NUL in a .csv file"),
        (".tsv", {"a": "", "b": None}, "empty in a .tsv file"),
        (".txt", {"text": "a", "label": 1}, "not a text alone"),
        (".txt", {"text": "a\nb"}, "a line end in a text"),
        (".txt", {"text": " "}, "a blank text"),
    ],
)
def test_what_a_kind_cannot_hold_is_refused(kind, row, reason):
    with pytest.raises(DataError) as caught:
        as_read(row, kind)
    assert caught.value.reason == reason


def test_a_sheet_has_a_last_row(tmp_path, monkeypatch):
    assert SHEET_ROWS == 2**20
    monkeypatch.setattr("tunesmith.data.write.SHEET_ROWS", 3)
    write(tmp_path / "two.xlsx", [{"a": "1"}, {"a": "2"}])
    with pytest.raises(DataError, match=r"a sheet holds 2 rows below its head, and there are more: write \.csv"):
        write(tmp_path / "three.xlsx", [{"a": "1"}, {"a": "2"}, {"a": "3"}])
    assert [path.name for path in tmp_path.iterdir()] == ["two.xlsx"]


def test_a_file_that_is_there_stays_unless_it_may_go(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("mine")
    with pytest.raises(DataError, match="exists. Name another file, or say --force"):
        write(path, ROWS)
    assert path.read_text() == "mine"

    def broken():
        yield ROWS[0]
        raise DataError("row 2 is broken, said 'x'")

    with pytest.raises(DataError, match="row 2"):
        write(path, broken(), replace=True)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    write(path, ROWS, replace=True)
    assert read(path) == ROWS
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match="exists"):
        write(tmp_path / "folder.json", ROWS, replace=True)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("rows.yaml", r"its name must end in one of \.json, .*"),
        ("rows", "its name must end in one of"),
        ("rows.xlsx.gz", r"\.xlsx is compressed already; take \.gz off its name"),
        ("none/rows.json", "there is no folder"),
    ],
)
def test_a_name_that_cannot_be_written_is_refused(tmp_path, name, problem):
    with pytest.raises(DataError, match=problem):
        write(tmp_path / name, ROWS)
