"""A signal to one of two processes that train together ends both in the same step."""

import json
import subprocess
import sys

import pytest
from transformers import TrainerControl

from tunesmith.engine import ranks
from tunesmith.engine.callbacks import StopOnSignal

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SCRIPT = """
import json, os, signal, sys
from pathlib import Path

from transformers import TrainerControl

from tunesmith.engine import ranks
from tunesmith.engine.callbacks import StopOnSignal

ranks.meet("cpu")
stop, seen = StopOnSignal(print), []
with stop.listening():
    for step in range(4):
        if (step, ranks.own()) == (2, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        control = TrainerControl()
        stop.on_step_end(None, None, control)
        seen.append([stop.received, control.should_save, control.should_training_stop])
        if control.should_training_stop:
            break
Path(sys.argv[1], f"{ranks.own()}.json").write_text(json.dumps(seen))
"""


@pytest.mark.slow
def test_a_signal_to_one_ends_both_in_the_same_step(tmp_path):
    (tmp_path / "stop.py").write_text(SCRIPT)
    done = subprocess.run([*TORCHRUN, tmp_path / "stop.py", tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert seen == [[[None, False, False], [None, False, False], [15, True, True]]] * 2
    assert done.stdout.count("SIGTERM: saving") == 2


def test_a_process_alone_asks_nobody(monkeypatch):
    monkeypatch.setattr(ranks, "largest", None)
    stop, control = StopOnSignal(print), TrainerControl()
    stop.on_step_end(None, None, control)
    assert not control.should_training_stop
    stop.received = 2
    stop.on_step_end(None, None, control)
    assert control.should_training_stop and control.should_save
