"""Ray Train on a cluster of this machine: the quickstart by two workers, one that is killed, one that fails."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from invariants.whole_runs import digests, metrics
from tunesmith.errors import LOST
from tunesmith.launchers import _on_ray
from tunesmith.launchers._on_ray import Attempts, Failed, first_of

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'tunesmith[ray]'")
OBJECTIVE = """
import os
from tunesmith.objectives.sft import SFT

class Failing(SFT):
    steps: int = 0

    def loss(self, scores, batch):
        if os.environ["RANK"] == "1":
            raise ValueError("no such luck")
        return super().loss(scores, batch)
"""


def start(out, *words):
    """`tunesmith train quickstart` by two workers of Ray; what it says goes to a file beside `out`."""
    said = ["launcher=ray", "launcher.num_workers=2", "train.device=cpu", f"train.output_dir={out}", "--json"]
    steps = ["train.max_steps=6", "train.save_steps=2", "train.logging_steps=1", "eval={}", "data.eval=0"]
    command = [sys.executable, "-m", "tunesmith", "train", "quickstart", *said, *steps, *words]
    with out.with_suffix(".err").open("w") as stderr, out.with_suffix(".out").open("w") as stdout:
        return subprocess.Popen(command, stderr=stderr, stdout=stdout)


def told(out):
    return out.with_suffix(".err").read_text()


def workers(process):
    """The processes in which Ray trains."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [one for one in found if "RayTrainWorker" in one.name() or "RayTrainWorker" in " ".join(one.cmdline())]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("ray") / "out of two"
    process = start(out)
    assert process.wait() == 0, told(out)
    return out


@needs_ray
@pytest.mark.slow
def test_two_workers_run_the_quickstart(whole):
    """What is told is what the run says, and of stdout the summary, once."""
    assert len(metrics(whole)) == 6
    assert len(whole.with_suffix(".out").read_text().splitlines()) == 1
    first, *lines = told(whole).splitlines()
    assert first.startswith("env RAY_USAGE_STATS_ENABLED=0") and "tunesmith.launchers._on_ray --num-workers=2" in first
    assert any(line.startswith("run folder: ") for line in lines)
    assert not any("pid=" in line or "RayTrainWorker" in line for line in lines), told(whole)


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_costs_nothing(whole, tmp_path):
    out = tmp_path / "killed"
    process = start(out, "launcher.max_restarts=1")
    while not (out / "checkpoints" / "step-2").exists():
        assert process.poll() is None, told(out)
        time.sleep(0.01)
    os.kill(random.Random(8).choice(workers(process)).pid, signal.SIGKILL)
    assert process.wait() == 0, told(out)
    assert "going on with" in told(out) and "Traceback" not in told(out)
    assert told(out).count("error: ") == 1
    assert metrics(out) == metrics(whole) and digests(out / "final") == digests(whole / "final")


@needs_ray
@pytest.mark.slow
def test_what_failed_first_is_said_once(tmp_path):
    (tmp_path / "failing.py").write_text(OBJECTIVE)
    out = tmp_path / "out"
    process = start(out, f"objective={tmp_path / 'failing.py'}")
    assert process.wait() == 1
    errors = [line for line in told(out).splitlines() if "error" in line.lower()]
    assert errors == ["error: rank 1: ValueError: no such luck (unexpected; -v shows the traceback)"]
    assert "Traceback" not in told(out)


def test_of_ranks_the_first_is_heard_that_had_a_reason_of_its_own():
    lost, late, early = Failed(f"rank 0: {LOST}", 1.0), Failed("rank 2: b", 3.0), Failed("rank 1: a", 2.0)
    assert first_of({0: lost, 2: late, 1: early}) == "rank 1: a"
    assert first_of({0: lost}) == f"rank 0: {LOST}"
    assert first_of({0: lost, 3: ConnectionError()}) == "rank 3: its process is gone and left no word (ConnectionError)"


def test_attempts_are_counted_by_rank():
    attempts = Attempts()
    assert [attempts.begin(rank) for rank in (0, 1, 1, 0, 2)] == [0, 0, 1, 1, 0]


def test_more_than_a_machine_has_is_refused():
    with pytest.raises(ValueError, match=r"num_workers=3, each with 2 CPU, and this machine has 4: start fewer"):
        _on_ray._refuse_more({"CPU": 2}, 3, {"CPU": 4})
