"""Processes that train together, one of them killed at any moment: torchrun starts all again, and nothing is lost.

Each strategy has one moment; with `TUNESMITH_MOMENTS=20` in the environment it has as many.
"""

import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import psutil
import pytest

from invariants.objective_runs import ACCUMULATED, SAMPLES, STEPS, new_runs
from invariants.whole_runs import digests, metrics

MOMENTS = int(os.environ.get("TUNESMITH_MOMENTS", "1"))
STRATEGIES = {
    "ddp": ("adapter.lora_dropout=0.1",),
    "fsdp": ("parallel.strategy=fsdp", "adapter=full", "optimizer.learning_rate=1e-3"),
}
if find_spec("deepspeed") is not None:
    STRATEGIES["deepspeed"] = ("parallel.strategy=deepspeed", "parallel.zero_stage=3", *STRATEGIES["fsdp"][1:])


def start(runs, run, restarts, *words):
    """Two processes that make a run; they are started again so many times."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}"]
    own = (f"{ACCUMULATED}={SAMPLES // 2}", *words)
    with said_of(run).open("w") as said:
        return subprocess.Popen(
            [sys.executable, *torchrun, "-m", "tunesmith", *runs.command("sft", run, *own)],
            stderr=said,
            env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},  # or they meet at addresses of the dead
        )


def said_of(run):
    return run.with_suffix(".log")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return new_runs(tmp_path_factory.mktemp("kills"))


@pytest.fixture(scope="module")
def whole(runs):
    """An uninterrupted run of each strategy."""
    found = {name: runs.folder / f"whole-{name}" for name in STRATEGIES}
    for name, run in found.items():
        process = start(runs, run, 0, *STRATEGIES[name])
        assert process.wait() == 0, said_of(run).read_text()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(MOMENTS))
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_killed_rank_costs_nothing(runs, whole, name, moment):
    """Half of the moments lie in a save, where its partial folder is there."""
    seeded = random.Random(f"{name} {moment}")
    in_save = (moment + list(STRATEGIES).index(name)) % 2
    run = runs.folder / f"{name}-{moment}"
    step, rank = seeded.randint(1, STEPS - 1), seeded.randrange(2)
    sign = run / "checkpoints" / (f".step-{step}.partial" if in_save else f"step-{step}")
    process = start(runs, run, 1, *STRATEGIES[name])
    limit = time.monotonic() + 120
    while not sign.exists() and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.001)
    time.sleep(seeded.uniform(0, 0.003 if in_save else 0.1))
    ranks = {one.environ().get("RANK"): one for one in psutil.Process(process.pid).children()}
    os.kill(ranks[str(rank)].pid, signal.SIGKILL)
    assert process.wait() == 0, said_of(run).read_text()
    assert "going on with" in said_of(run).read_text()
    assert metrics(run) == metrics(whole[name]) and digests(run / "final") == digests(whole[name] / "final")
    assert not list((run / "checkpoints").glob(".*"))
