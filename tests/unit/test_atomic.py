"""What is written takes its name whole, on the disk, or not at all; a full disk is told from other errors."""

import errno
import os
import shutil
import sys

import pytest

from tunesmith import atomic
from tunesmith.errors import DataError, RunError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(folder, content):
    (folder / "sub").mkdir()
    (folder / "sub" / "a").write_text(content)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "picture"
    atomic.write(path, b"old")
    with pytest.raises(TypeError):
        atomic.write(path, "text, which a binary file refuses after it is opened")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old" and names(tmp_path) == ["picture"]
    atomic.write(path, b"new")
    assert path.read_bytes() == b"new" and names(tmp_path) == ["picture"]


def test_a_folder_is_not_there_before_it_is_whole(tmp_path):
    final = tmp_path / "deep" / "a"
    with atomic.folder(final) as work:
        fill(work, "whole")
        assert not final.exists() and work.parent == final.parent
    assert (final / "sub" / "a").read_text() == "whole" and names(tmp_path / "deep") == ["a"]


def test_an_error_leaves_the_old_folder_and_nothing_beside(tmp_path):
    fill_old(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt), atomic.folder(tmp_path / "a", replace=lambda found: True) as work:
        fill(work, "new")
        raise KeyboardInterrupt
    assert (tmp_path / "a" / "sub" / "a").read_text() == "old" and names(tmp_path) == ["a"]


def fill_old(folder):
    folder.mkdir()
    fill(folder, "old")


def test_what_a_killed_program_left_goes(tmp_path):
    fill_old(atomic.partial(tmp_path / "a"))
    with atomic.folder(tmp_path / "a") as work:
        assert names(work) == []
    assert names(tmp_path) == ["a"]


def test_only_an_empty_folder_gives_way_unasked(tmp_path):
    (tmp_path / "empty").mkdir()
    fill_old(tmp_path / "full")
    (tmp_path / "file").write_text("old")
    with atomic.folder(tmp_path / "empty") as work:
        fill(work, "new")
    with pytest.raises(FileExistsError, match="not empty.*full"), atomic.folder(tmp_path / "full") as work:
        fill(work, "new")
    with pytest.raises(NotADirectoryError), atomic.folder(tmp_path / "file", replace=lambda found: True) as work:
        fill(work, "new")
    assert (tmp_path / "empty" / "sub" / "a").read_text() == "new"
    assert (tmp_path / "full" / "sub" / "a").read_text() == "old"
    assert (tmp_path / "file").read_text() == "old"
    with atomic.folder(tmp_path / "full", replace=lambda found: names(found) == ["sub"]) as work:
        fill(work, "new")
    assert (tmp_path / "full" / "sub" / "a").read_text() == "new"
    assert names(tmp_path) == ["empty", "file", "full"]


def test_of_two_makers_of_one_folder_the_first_is_kept(tmp_path):
    works = [tmp_path / ".one", tmp_path / ".two"]
    for work in works:
        work.mkdir()
    with pytest.raises(FileExistsError), atomic.folder(tmp_path / "a", works[0]) as second:
        with atomic.folder(tmp_path / "a", works[1]) as first:
            fill(first, "first")
        fill(second, "second")
    assert (tmp_path / "a" / "sub" / "a").read_text() == "first" and names(tmp_path) == ["a"]


def test_where_a_folder_is_not_renamed_onto_an_empty_one(tmp_path, monkeypatch):
    """As on Windows."""
    rename = os.replace

    def careful(work, final):
        if final.exists():
            raise PermissionError(errno.EACCES, "Access is denied")
        rename(work, final)

    monkeypatch.setattr(os, "replace", careful)
    (tmp_path / "a").mkdir()
    fill_old(tmp_path / "b")
    for name in ("a", "b"):
        with atomic.folder(tmp_path / name, replace=lambda found: True) as work:
            fill(work, "new")
        assert (tmp_path / name / "sub" / "a").read_text() == "new"


def test_a_rename_that_cannot_be_is_told(tmp_path, monkeypatch):
    def refuse(work, final):
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(os, "replace", refuse)
    fill_old(tmp_path / "b")
    for name in ("a", "b"):
        with pytest.raises(PermissionError), atomic.folder(tmp_path / name, replace=lambda found: True) as work:
            fill(work, "new")
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which file a number stands for")
def test_all_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path, monkeypatch):
    steps = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (steps.append(os.readlink(f"/proc/self/fd/{file}")), flush(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("rename"), rename(*paths)))
    with atomic.folder(tmp_path / "a") as work:
        fill(work, "new")
        (work / "b").write_text("")
    before, after = steps[: steps.index("rename")], steps[steps.index("rename") + 1 :]
    assert set(before) == {str(work / name) for name in ("", "b", "sub", "sub/a")} and len(before) == 4
    assert after == [str(tmp_path)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), os.strerror(errno.ENOSPC)),
        (OSError(errno.EDQUOT, "Quota"), os.strerror(errno.EDQUOT)),
        (RuntimeError("Error while serializing: I/O error: No room (os error 28)"), os.strerror(errno.ENOSPC)),
        (OSError(errno.EACCES, "No space left on device"), None),
        (RuntimeError("No such file (os error 2)"), None),
        (ValueError("28"), None),
    ],
)
def test_a_full_disk_is_told_from_other_errors(tmp_path, error, reason):
    assert atomic.no_room(error) == reason
    wanted = type(error) if reason is None else DataError
    with pytest.raises(wanted) as found, atomic.room(tmp_path / "a" / "b", DataError, "Make room"):
        raise error
    if reason is not None:
        free = shutil.disk_usage(tmp_path).free / 1e6
        said = str(found.value)
        assert said.startswith(f"{tmp_path / 'a' / 'b'} cannot be written: {reason} (") and said.endswith(". Make room")
        assert float(said.partition("(")[2].partition(" MB are free")[0].replace(",", "")) == pytest.approx(
            free, rel=0.2
        )
        assert found.value.__cause__ is error
    else:
        assert found.value is error


def test_no_error_is_no_error(tmp_path):
    with atomic.room(tmp_path, RunError, "Make room"):
        (tmp_path / "a").write_text("a")
