"""Where a run folder goes, and what is refused before anything heavy is loaded."""

import sys
from pathlib import Path

import pytest

from tunesmith.errors import RunError
from tunesmith.folder import new_folder, refuse_full
from tunesmith.recipe import Recipe

FILES = {"recipe.yaml": b"model: m\n", "record.json": b"{}"}


def made(output_dir):
    """The folder that is made for a recipe, looked at before."""
    refuse_full(output_dir)
    folder = new_folder(Recipe(name="mine", model="m", data={"train": "a"}, train={"output_dir": output_dir}), FILES)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working folder, in the user's home."""
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize(
    ("said", "place"), [("a/b", "work/a/b"), ("~/x", "x"), (".", "work"), ("../work", "work"), ("../y/z/..", "y")]
)
def test_a_folder_is_made_where_it_is_said(here, tmp_path, said, place):
    assert made(said).samefile(tmp_path / place)
    assert Path.cwd() == here and here.samefile(".")
    assert list(tmp_path.rglob(".*")) == []
    with pytest.raises(RunError, match=r"is not empty.*tunesmith train"):
        refuse_full(said)


def test_the_command_that_goes_on_can_be_copied():
    made("of 2 words")
    with pytest.raises(RunError, match=r"go on with that run: tunesmith train 'of 2 words'$"):
        refuse_full("of 2 words")


def test_a_link_leads_to_the_folder(here, tmp_path):
    (tmp_path / "disk").mkdir()
    (here / "link").symlink_to(tmp_path / "disk")
    assert made("link") == Path("link") and (here / "link").is_symlink()


def test_the_next_free_folder_is_taken_when_none_is_said():
    assert [made(None) for _ in range(2)] == [Path("runs/mine"), Path("runs/mine-2")]


def test_a_place_that_cannot_be_written_is_said_before_the_run(here):
    (here / "file").write_text("")
    for said, line in {
        "file": "file is a file",
        "file/x": r"file/x: .*/file cannot be written \(Not a directory\). Choose another folder",
        "~nobody-here/x": "there is no such user",
    }.items():
        with pytest.raises(RunError, match=f"train.output_dir: .*{line}"):
            refuse_full(said)
    assert [path.name for path in here.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="a folder in which not even root can write")
def test_a_parent_that_cannot_be_written_is_said(monkeypatch):
    with pytest.raises(RunError, match=r"/proc/runs/one: /proc cannot be written"):
        refuse_full("/proc/runs/one")
    monkeypatch.chdir("/proc")
    with pytest.raises(RunError, match=r"train.output_dir: runs: /proc cannot be written"):
        refuse_full(None)
