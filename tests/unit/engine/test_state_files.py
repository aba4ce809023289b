"""The folder of files that DeepSpeed keeps state in: where it is, when it goes, and what is refused before."""

import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.engine import state_files
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe

HOLD = """
import sys, time
from pathlib import Path
from tunesmith.engine import state_files
lock = state_files._locked(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def recipe(path=None, **train):
    parallel = {"strategy": "deepspeed", "zero_stage": 3, "offload": "nvme"} | (
        {"nvme_path": str(path)} if path else {}
    )
    return Recipe(model="builtin:tiny", data={"train": "builtin:identity"}, parallel=parallel, train=train)


@pytest.fixture
def built(monkeypatch):
    monkeypatch.setattr(state_files, "_unbuilt", lambda: None)


def test_a_folder_is_there_until_the_block_ends(tmp_path, built):
    with state_files.folder(recipe(tmp_path / "disk"), None) as own:
        assert own.parent == tmp_path / "disk" and [one.name for one in own.iterdir()] == ["lock"]
        (own / "state").write_text("x")
    assert list((tmp_path / "disk").iterdir()) == []


def test_it_lies_beside_the_run_where_nothing_is_said(tmp_path, built):
    with state_files.folder(recipe(output_dir=str(tmp_path / "runs" / "one")), None) as own:
        assert own.parent == tmp_path / "runs"
    with state_files.folder(recipe(), tmp_path / "others" / "two") as own:
        assert own.parent == tmp_path / "others"


def test_a_recipe_without_files_has_none(tmp_path):
    plain = Recipe(model="builtin:tiny", data={"train": "builtin:identity"}, parallel={"strategy": "deepspeed"})
    with state_files.folder(plain, tmp_path / "run") as own:
        assert own is None
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_goes_and_what_others_use_stays(tmp_path, built):
    gone, used, begun = (tmp_path / f".tunesmith-{name}.swap" for name in ("gone", "used", "begun"))
    for one in (gone, used, begun):  # the last has no lock yet
        one.mkdir()
    (gone / "lock").touch()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(used)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with state_files.folder(recipe(tmp_path), None) as own:
            assert {*tmp_path.iterdir()} == {own, used, begun}
        other.kill()
        other.wait()
    with state_files.folder(recipe(tmp_path), None) as own:
        assert {*tmp_path.iterdir()} == {own, begun}


def test_what_cannot_be_written_is_said_in_a_line(tmp_path, built, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=r"parallel.nvme_path: .*/file/disk cannot be written, or locked \(Not a dir"):
        with state_files.folder(recipe(tmp_path / "file" / "disk"), None):
            pass

    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(state_files.os, "pwrite", refuse)
    with pytest.raises(RecipeError, match=r"does not take 1,024 bytes past the system's cache.*\(Invalid argument\)"):
        with state_files.folder(recipe(tmp_path), None):
            pass
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_without_locks_nothing_is_left(tmp_path, built, monkeypatch):
    def refuse(own):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(state_files, "_locked", refuse)
    with pytest.raises(RecipeError, match=r"parallel.nvme_path: .* cannot be written, or locked \(Function not impl"):
        with state_files.folder(recipe(tmp_path), None):
            pass
    assert list(tmp_path.iterdir()) == []


def test_without_libaio_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(state_files, "_unbuilt", lambda: "no such op")
    with pytest.raises(RecipeError, match=r"no such op\. It needs libaio \(apt-get install libaio-dev\)"):
        with state_files.folder(recipe(tmp_path), None):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "lockable", "said"),
    [
        (24_000_000, None, None),
        (23_999_999, None, r"has 0.024 GB free, .* with a checkpoint of it, takes 0.024 GB"),  # weight and two means
        (1 << 40, 16_000_000, None),
        (
            1 << 40,
            15_999_999,
            r"buffers take 16.0 MB of locked memory, and a process may lock 16.0 MB",
        ),  # a gradient too
    ],
)
def test_room_on_the_disk_and_memory_that_may_be_locked(monkeypatch, free, lockable, said):
    monkeypatch.setattr(state_files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    few = lambda wanted: None if lockable is None or wanted <= lockable else lockable  # noqa: E731
    monkeypatch.setattr(state_files, "_lockable", few)
    if said is None:
        state_files.refuse_small(recipe(), Path("/disk/own"), 1_000_000, 1000)
        return
    with pytest.raises(RecipeError, match=said):
        state_files.refuse_small(recipe(), Path("/disk/own"), 1_000_000, 1000)


def test_the_memory_that_may_be_locked_is_what_the_system_locks(monkeypatch):
    import resource

    class Libc:
        def __init__(self, code):
            self.code = code

        def mlock(self, where, size):
            return self.code

        def munlock(self, where, size):
            return 0

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 16, 1 << 20))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: None)
    for code, found in ((0, None), (-1, 1 << 20)):
        monkeypatch.setattr(state_files.ctypes, "CDLL", lambda *_, code=code, **__: Libc(code))
        assert state_files._lockable((1 << 20) + 1) == found
        assert state_files._lockable(1 << 20) is None
    assert state_files._lockable(1 << 62) == 1 << 20  # which cannot even be asked for
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert state_files._lockable(1 << 40) is None
