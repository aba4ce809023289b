"""The digest of a large file is kept, and never one of another content."""

import hashlib
import os

import pytest

from tunesmith.data import digests
from tunesmith.data.digests import digest_of, user_cache

LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch, tmp_path):
    monkeypatch.setattr(digests, "LARGE_BYTES", 10)
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -1000.0)  # what was written now counts as old
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"0123456789abcdef")
    return path


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def reading(monkeypatch):
    """The files that are read."""
    seen = []
    own = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: seen.append(file.name) or own(file, kind))
    return seen


def test_a_second_look_reads_nothing(file, reading):
    assert digest_of(str(file)) == digest_of(str(file)) == sha256(b"0123456789abcdef")
    assert reading == [str(file)]


def test_any_change_is_read(file, reading):
    digest_of(str(file))
    for number, content in enumerate((b"0123456789abcdeF", b"0123456789abcdefg")):
        before = file.stat()
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had happened
        assert digest_of(str(file)) == sha256(content)
        assert len(reading) == number + 2
    other = file.with_name("other")
    other.write_bytes(b"fedcba98765432100")
    os.utime(other, ns=(LONG_AGO, file.stat().st_mtime_ns))
    other.replace(file)
    assert digest_of(str(file)) == sha256(b"fedcba98765432100")


def test_what_was_changed_just_now_is_not_kept(file, reading, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 2.0)
    assert digest_of(str(file)) == digest_of(str(file)) == sha256(b"0123456789abcdef")
    assert len(reading) == 2 and not (user_cache() / "digests").exists()


def test_a_small_file_is_read_each_time(file, reading, monkeypatch):
    monkeypatch.setattr(digests, "LARGE_BYTES", 17)
    digest_of(str(file))
    digest_of(str(file))
    assert len(reading) == 2 and not user_cache().exists()


def test_a_broken_or_forbidden_cache_is_none(file, tmp_path, monkeypatch):
    digest_of(str(file))
    (kept,) = (user_cache() / "digests").iterdir()
    kept.write_text("{")
    assert digest_of(str(file)) == sha256(b"0123456789abcdef")
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    assert digest_of(str(file)) == sha256(b"0123456789abcdef")
    with pytest.raises(FileNotFoundError):
        digest_of(str(tmp_path / "none"))
