"""A disk that is full while something is written: one clear line, what was there is intact, and nothing half there.

Most tests set the largest file that this process may write: the system then refuses as it does on a full disk, in the
same places. One fills a small disk of its own, where the tests may mount one.
"""

import contextlib
import errno
import json
import shutil
import subprocess

import numpy as np
import pytest
from transformers import TrainerCallback

from fixtures_models import save_model, tiny_lora, tiny_model, tiny_tokenizer
from tunesmith import Recipe, resume, train
from tunesmith.data import kept, reference, taught
from tunesmith.data.rendered import Rendered
from tunesmith.data.store import StoreWriter
from tunesmith.engine import checkpoint
from tunesmith.errors import DataError, RunError
from tunesmith.exports import adapter, merged
from tunesmith.folder import new_folder
from tunesmith.objectives.dpo import DPO
from tunesmith.recipe_data import Source
from tunesmith.types import Tokens

resource = pytest.importorskip("resource", reason="this system has no limit on the size of a file")

ROWS = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure."} for i in range(24)]
FULL = r"cannot be written: (File too large|No space left on device) \([\d,.]+ MB are free on its disk\)"


@contextlib.contextmanager
def largest_file(bytes_):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class At(TrainerCallback):
    """Does something at the end of a step, or of training."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.do()

    def on_train_end(self, args, state, control, **kwargs):
        if self.step is None:
            self.do()


@pytest.fixture
def make(tmp_path):
    """A recipe that trains all of a tiny model for four steps, with a checkpoint at the second."""
    save_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    def recipe(run):
        return Recipe(
            model=str(tmp_path / "model"),
            data={"train": str(tmp_path / "rows.jsonl"), "max_tokens": 64, "cache_dir": str(tmp_path / "cache")},
            adapter="full",
            train={"output_dir": str(run), "row_tokens": 64, "max_steps": 4, "save_steps": 2},
        )

    return recipe


def weights(run):
    return (run / "final" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("step", "left"), [(3, [2]), (None, [2, 4])], ids=["checkpoint", "final"])
def test_a_full_disk_while_a_run_is_saved(make, tmp_path, step, left):
    """A file of 60 kB is enough for the lines of metrics, and not for weights of 125 kB."""
    run, limit = tmp_path / "run", contextlib.ExitStack()
    fill = At(step, lambda: limit.enter_context(largest_file(60_000)))
    with limit, pytest.raises(RunError, match=FULL) as found:
        train(make(run), callbacks=[fill])
    assert str(found.value).startswith(str(run))
    assert str(found.value).endswith(f"Make room, then go on with: tunesmith.resume({str(run)!r}, callbacks=...)")
    assert checkpoint.steps(run) == left and not (run / "final").exists()
    assert all(checkpoint.damage(checkpoint.place(run, step)) is None for step in left)
    assert not list(run.rglob(".*"))
    resume(run, callbacks=[At(0, None)])
    whole = train(make(tmp_path / "whole")).folder
    assert weights(run) == weights(whole)


def test_a_full_disk_of_its_own(make, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("these tests may not mount a disk")
    try:
        run = disk / "run"

        def fill():
            with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()

        with pytest.raises(RunError, match="No space left on device"):
            train(make(run), callbacks=[At(3, fill)])
        assert checkpoint.steps(run) == [2] and checkpoint.damage(checkpoint.place(run, 2)) is None
        assert not list(run.rglob(".*"))
        (disk / "filler").unlink()
        resume(run, callbacks=[At(0, None)])
        assert weights(run) == weights(train(make(tmp_path / "whole")).folder)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_that_safetensors_meets(make, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*words):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match=FULL):
        train(make(tmp_path / "run"))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_no_room_for_the_first_files_of_a_run(make, tmp_path):
    recipe = make(tmp_path / "run")
    with largest_file(100), pytest.raises(RunError, match=f"{FULL}. Make room, or say another train.output_dir"):
        new_folder(recipe, {"ledger.json": b"{}", "record.json": bytes(101)})
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".*"))


def test_no_room_in_the_working_folder(make, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with largest_file(100), pytest.raises(RunError, match=FULL):
        new_folder(make("."), {"ledger.json": b"{}", "record.json": bytes(101)})
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("samples", [1, 5000], ids=["at the end", "on the way"])
def test_no_room_for_rendered_rows(tmp_path, samples):
    """The small ones wait in the memory until the files are closed."""
    tokens = Tokens(np.arange(300, dtype=np.int32), np.ones(300, np.float32))
    said = f"{FULL}. Say data.cache_dir=FOLDER"
    with largest_file(1000), pytest.raises(DataError, match=said), StoreWriter(tmp_path / "a") as writer:
        writer.add([Rendered("f:1", (tokens,))] * samples)
        assert samples == 1, "refused where it was written"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("none", [reference.NONE, taught.none(4)], ids=["reference", "teacher"])
def test_no_room_for_what_is_kept_of_a_frozen_model(tmp_path, none):
    """A new file, and one that is made again since a byte of it is wrong: what was there stays as it is."""
    size, said = 3 * kept.BLOCK, f"{FULL}. Say data.cache_dir=FOLDER"
    before = tmp_path / "before"
    kept.open_file(before, none, size, print)
    wrong = bytearray(before.read_bytes())
    wrong[0] ^= 1
    before.write_bytes(wrong)
    for name in ("before", "new"):
        with largest_file(2 * kept.BLOCK * none.itemsize), pytest.raises(DataError, match=said) as found:
            kept.open_file(tmp_path / name, none, size, print)
        assert "\n" not in str(found.value) and str(found.value).startswith(f"{tmp_path} cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["before"] and before.read_bytes() == wrong


def test_a_run_whose_reference_has_no_room_begins_nothing(make, tmp_path):
    pairs = [{"prompt": f"Is it {number}?", "chosen": "It is, sure.", "rejected": "No."} for number in range(24)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    recipe = make(tmp_path / "run")
    data = recipe.data.model_copy(update={"train": (Source(path=str(tmp_path / "pairs.jsonl")),)})
    recipe = recipe.model_copy(update={"objective": DPO(), "data": data})
    folder = tmp_path / "cache" / "reference"
    folder.parent.mkdir()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match=f"{folder} {FULL}"):
        written = kept.atomic.written
        patch.setattr(
            kept.atomic, "written", lambda path: _limited(written, path) if path.parent == folder else written(path)
        )
        train(recipe)
    assert not (tmp_path / "run").exists() and not list(folder.iterdir())
    train(recipe)
    assert len(list(folder.iterdir())) == 1


@contextlib.contextmanager
def _limited(written, path):
    with largest_file(100), written(path) as file:
        yield file


@pytest.mark.parametrize("export", [adapter.PlainAdapter(), merged.Merged()], ids=["adapter", "merged"])
def test_no_room_for_an_export(tmp_path, export):
    base = save_model(tmp_path / "base")
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(json.dumps({"model": {"path": str(base)}}))
    model = tiny_model()
    model.name_or_path = str(base)
    tiny_lora(model).save_pretrained(run / "final", save_embedding_layers=False)
    tiny_tokenizer().save_pretrained(run / "final")
    with largest_file(5000), pytest.raises(RunError, match=f"{FULL}. Make room, or choose another folder") as found:
        export.write(run, tmp_path / "out")
    assert str(found.value).startswith(str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]


def test_another_error_in_a_run_is_told_as_it_is(make, tmp_path):
    def refuse():
        raise PermissionError(errno.EACCES, "Permission denied", "a place")

    with pytest.raises(PermissionError, match="a place"):
        train(make(tmp_path / "run"), callbacks=[At(1, refuse)])
    shutil.rmtree(tmp_path / "run")
