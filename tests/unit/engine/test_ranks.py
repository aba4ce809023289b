"""What one process does while the others wait may take longer than the engine's own bound."""

import subprocess

import pytest

from tunesmith.engine import ranks
from unit.engine.test_callbacks import TORCHRUN

SCRIPT = """
import sys, time
from datetime import timedelta
import torch
from tunesmith.engine import ranks

torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=2))
ranks.meet("cpu")
assert ranks.once(lambda: time.sleep(4) or "found") == "found"
with ranks.first():
    time.sleep(4 * (ranks.own() == 0))
assert ranks.everyones(time.sleep(4 * ranks.own()) or ranks.own()) == [0, 1]
"""


@pytest.mark.parametrize(
    ("said", "number"),
    [({"LOCAL_WORLD_SIZE": "4", "LOCAL_SIZE": "2"}, 4), ({"LOCAL_SIZE": "2"}, 2), ({}, 1)],
    ids=["torchrun", "deepspeed", "nobody"],
)
def test_processes_of_this_machine(monkeypatch, said, number):
    for name, value in ({"WORLD_SIZE": "8"} | said).items():
        monkeypatch.setenv(name, value)
    assert ranks.on_this_machine() == number
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks.on_this_machine() == 1


@pytest.mark.slow
def test_others_wait_as_long_as_it_takes(tmp_path):
    (tmp_path / "wait.py").write_text(SCRIPT)
    done = subprocess.run([*TORCHRUN, tmp_path / "wait.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
