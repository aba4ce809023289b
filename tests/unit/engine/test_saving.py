"""A save that goes on beside training: what it leaves, and where its failure is told."""

import json

import pytest
import torch

from tunesmith.engine import checkpoint
from tunesmith.engine.saving import Saving


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def begin(saving, final, then=lambda: None):
    model = torch.nn.Linear(2, 2)

    def beside(folder):
        (folder / "state.json").write_text(json.dumps(1))

    saving.begin(final, model, torch.optim.SGD(model.parameters()), beside, then)


def test_the_folder_takes_its_name_at_the_end(alone, tmp_path):
    done = []
    with Saving() as saving:
        begin(saving, tmp_path / "step-1", lambda: done.append((tmp_path / "step-1").is_dir()))
    assert done == [True] and checkpoint.damage(tmp_path / "step-1") is None
    assert not list(tmp_path.glob(".*"))


def test_what_a_save_failed_of_is_told_once_by_what_waits_for_it(alone, tmp_path):
    def fails():
        raise OSError("no room")

    saving = Saving()
    begin(saving, tmp_path / "step-1", fails)
    with pytest.raises(OSError, match="no room"):
        begin(saving, tmp_path / "step-2")
    with saving:
        begin(saving, tmp_path / "step-2")
    assert checkpoint.damage(tmp_path / "step-2") is None


def test_what_ended_training_is_told_and_not_the_save(alone, tmp_path):
    def fails():
        raise OSError("no room")

    saving = Saving()
    with pytest.raises(ValueError, match="the loss"), saving:
        begin(saving, tmp_path / "step-1", fails)
        raise ValueError("the loss")
