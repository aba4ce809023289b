"""Folders with links, and columns that registries name."""

import json
import os
import time
from pathlib import Path

import pytest

from tunesmith.data import source
from tunesmith.data.source import Registered
from tunesmith.errors import DataError
from tunesmith.recipe_data import Source


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, *rows: dict) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: str, **options: object) -> list[dict]:
    return [row for _, row in source.read(Registered(path=path, registered="name", **options))]


# Links


@pytest.mark.parametrize("path", ["set/**/*.jsonl", "**", "set"])
def test_a_link_that_leads_back_is_an_error_and_ends(here, path):
    write("set/below/rows.jsonl", {"a": 1})
    os.symlink(here / "set", here / "set/below/back")
    os.symlink(here / "set", here / "set/below/again")  # two of them double the ways at every depth
    start = time.monotonic()
    with pytest.raises(DataError, match=r"below/(back|again) is a link to .*/set, a folder that it lies in; take it"):
        source.local_files(Source(path=path))
    assert time.monotonic() - start < 5


def test_two_links_that_lead_to_each_other(here):
    write("one/rows.jsonl", {"a": 1})
    write("two/rows.jsonl", {"a": 2})
    os.symlink(here / "two", here / "one/two")
    os.symlink(here / "one", here / "two/one")
    with pytest.raises(DataError, match="is a link to"):
        source.local_files(Source(path="one/**/*.jsonl"))


def test_links_that_lead_elsewhere_are_followed(here):
    write("elsewhere/rows.jsonl", {"a": 1})
    write("set/rows.jsonl", {"a": 2})
    os.symlink(here / "elsewhere", here / "set/link")
    assert source.local_files(Source(path="set/**/*.jsonl")) == [Path("set/link/rows.jsonl"), Path("set/rows.jsonl")]
    os.symlink(here / "set", here / "elsewhere/back")  # no way of a plain folder
    assert source.local_files(Source(path="set")) == [Path("set/rows.jsonl")]


# Columns


def test_rows_of_a_registered_source_may_lack_columns(here):
    write("a.jsonl", {"q": "1", "c": "x"}, {"q": "2"}, {"q": "3", "input": "own"})
    found = read("a.jsonl", columns={"instruction": "q", "input": "c"})
    assert found == [{"instruction": "1", "input": "x"}, {"instruction": "2"}, {"instruction": "3", "input": "own"}]
    with pytest.raises(DataError, match="a.jsonl:2: `columns` takes input from 'c', no column of the row"):
        list(source.read(Source(path="a.jsonl", columns={"instruction": "q", "input": "c"})))


def test_a_column_that_no_row_has_is_an_error_at_the_end(here):
    write("a.jsonl", {"q": "1"}, {"q": "2"})
    with pytest.raises(DataError, match="a.jsonl: `columns` takes input from 'cc', no column of any row"):
        read("a.jsonl", columns={"instruction": "q", "input": "cc"})
    assert len(read("a.jsonl", columns={"instruction": "q", "input": "cc"}, num_samples=2)) == 2


@pytest.mark.parametrize("kind", [Source, Registered])
def test_a_name_from_no_column_is_not_read(here, kind):
    write("a.jsonl", {"q": "1", "input": "x"})
    extra = {"registered": "name"} if kind is Registered else {}
    one = kind(path="a.jsonl", columns={"instruction": "q", "input": ""}, **extra)
    assert [row for _, row in source.read(one)] == [{"instruction": "1"}]


def test_several_empty_files_and_one_with_rows(here):
    Path("a.jsonl").write_text("")
    Path("b.csv").write_text("")
    with pytest.raises(DataError, match="a.jsonl has no rows: it is empty, or holds a header alone"):
        list(source.read(Source(path="a.jsonl")))
    with pytest.raises(DataError, match=r"\* has no rows"):
        list(source.read(Source(path="*")))
    write("c.jsonl", {"a": 1})
    assert [where for where, _ in source.read(Source(path="*"))] == ["c.jsonl:1"]
