"""Rows of stores and of the web: in memory, and from a server in this process. Nothing else is asked."""

import functools
import gzip
import http.server
import json
import os
import sys
import threading

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from tunesmith.data import files, remote, source
from tunesmith.errors import DataError, MissingExtra
from tunesmith.recipe_data import Source

LINES = b'{"text": "one"}\n{"text": "two"}\n'
ROWS = [{"text": "one"}, {"text": "two"}]


@pytest.fixture
def memory():
    """The file system of memory://, which is one for the whole process."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def rows(path: str) -> list[dict]:
    return [row for _, row in source.read(Source(path=path))]


def error(path: str) -> str:
    with pytest.raises(DataError) as caught:
        rows(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_kind_of_file_is_read_from_a_store(memory, tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    content = {
        "rows.jsonl": LINES,
        "rows.json": json.dumps(ROWS).encode(),
        "rows.csv": b"text\none\ntwo\n",
        "rows.jsonl.gz": gzip.compress(LINES),
        "rows.jsonl.zst": pyarrow.compress(LINES, "zstd", asbytes=True),
        "rows.parquet": (tmp_path / "rows.parquet").read_bytes(),
        "rows.parquet.gz": gzip.compress((tmp_path / "rows.parquet").read_bytes()),
    }
    for name, one in content.items():
        memory.pipe(f"/set/{name}", one)
    for name in content:
        assert rows(f"memory://set/{name}") == ROWS, name
    assert rows(f"file://{tmp_path}/rows.parquet") == ROWS


def test_globs_and_folders_of_a_store_and_their_places(memory):
    memory.pipe({f"/set/{name}": LINES for name in ("b.jsonl", "a.jsonl", "below/c.jsonl", "notes.md")})
    places = ["memory://set/a.jsonl:1", "memory://set/a.jsonl:2", "memory://set/b.jsonl:1", "memory://set/b.jsonl:2"]
    for path in ("memory://set/*", "memory://set", "memory://set/[ab].jsonl"):
        assert [where.replace(":///", "://") for where, _ in source.read(Source(path=path))] == places
    assert len(rows("memory://set/**/*.jsonl")) == 6
    assert source.local_files(Source(path="memory://set")) == []


def test_what_is_wrong_in_a_store_is_one_line(memory):
    memory.pipe("/set/notes.md", b"text")
    memory.pipe("/set/bad.jsonl", b'{"a": 1}\n{"a"\n')
    memory.pipe("/set/cut.jsonl.gz", gzip.compress(LINES)[:-9])
    assert error("memory://set/none.jsonl") == "there is no file memory://set/none.jsonl"
    assert error("memory://set/*.csv").startswith("memory://set/*.csv says no file; readable are .json")
    assert "notes.md, which cannot be read" in error("memory://set/notes.md")
    assert error("memory://set/bad.jsonl").startswith("memory://set/bad.jsonl:2 is not valid JSON")
    assert "its gzip data is broken or cut off" in error("memory://set/cut.jsonl.gz")
    with pytest.raises(DataError, match="there is no file memory://set/none.jsonl"):
        source.local_files(Source(path="memory://set/none.jsonl"))
    assert error("memroy://set/a.jsonl").startswith("memroy://set/a.jsonl: nothing reads memroy://. Did you mean 'mem")


def test_a_fingerprint_follows_a_file_of_a_store(memory):
    one = Source(path="memory://set/rows.jsonl")
    memory.pipe("/set/rows.jsonl", LINES)
    before = source.fingerprint(one)
    assert source.fingerprint(one) == before
    memory.pipe("/set/rows.jsonl", LINES.replace(b"two", b"too"))
    assert source.fingerprint(one) != before


def test_where_a_store_says_no_digest_or_time_the_content_counts(memory, monkeypatch):
    memory.pipe("/set/rows.jsonl", LINES)
    monkeypatch.setattr(remote, "IDENTITY", ())
    before = remote.identity("memory://set/rows.jsonl")
    memory.pipe("/set/rows.jsonl", LINES)
    assert remote.identity("memory://set/rows.jsonl") == before
    memory.pipe("/set/rows.jsonl", LINES + LINES)
    assert remote.identity("memory://set/rows.jsonl") != before


@pytest.mark.parametrize(("scheme", "module", "package"), [
    ("s3", "s3fs", "s3fs"), ("gs", "gcsfs", "gcsfs"), ("https", "aiohttp", "aiohttp"),
])  # fmt: skip
def test_a_client_that_is_missing_is_named_with_its_command(monkeypatch, scheme, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    looked_up = sys.modules["fsspec.registry"]._registry  # by tests before this one
    monkeypatch.delitem(looked_up, scheme, raising=False)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    path = f"{scheme}://set/rows.jsonl"
    said = f"^{path} needs a client of {scheme}:// that is not installed: pip install {package}$"
    with pytest.raises(MissingExtra, match=said):
        source.local_files(Source(path=path))


@pytest.mark.parametrize("path", ["C:/set/rows.jsonl", "a/b.jsonl", "hf://a/b", "builtin:identity", "/a://b"])
def test_what_is_no_address_of_a_store(path):
    assert not remote.is_remote(path)


# The web


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Of what is asked with `?download` it does not say the size, as servers that pack as they send."""

    def log_message(self, *_: object) -> None:
        pass

    def send_header(self, keyword: str, value: str) -> None:
        if not (keyword == "Content-Length" and "download" in self.path):
            super().send_header(keyword, value)


@pytest.fixture
def web(tmp_path):
    """The address of a server of a folder, which sends files whole and from their beginning alone."""
    pytest.importorskip("aiohttp", reason="http:// needs aiohttp, which is not installed")
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"text\none\ntwo\n"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_rows_are_read_from_the_web(web):
    for name in ("rows.jsonl", "rows.jsonl?download=true", "rows.csv.gz", "rows.parquet", "rows.parquet?download"):
        assert rows(f"{web}/{name}") == ROWS
    assert [where for where, _ in source.read(Source(path=f"{web}/*.jsonl"))] == [
        f"{web}/rows.jsonl:1",
        f"{web}/rows.jsonl:2",
    ]
    assert files.kind_of(f"{web}/rows.jsonl?download=true") == ".jsonl"


def test_what_is_wrong_on_the_web_is_one_line(web):
    assert error(f"{web}/none.jsonl").startswith(f"there is no file {web}/none.jsonl")
    assert "its name" in error(f"{web}/rows") or "no file" in error(f"{web}/rows")
    assert "127.0.0.1" in error("http://127.0.0.1:9/rows.jsonl")


def test_a_fingerprint_follows_a_file_of_the_web(web, tmp_path):
    one = Source(path=f"{web}/rows.jsonl")
    before = source.fingerprint(one)
    assert source.fingerprint(one) == before
    os.utime(tmp_path / "rows.jsonl", (1, 1))  # the server says when a file was changed
    assert source.fingerprint(one) != before
