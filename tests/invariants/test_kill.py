"""A run killed at any moment and resumed equals one that was not: losses, metrics file and weights, bit for bit."""

import os
import random
import signal
import subprocess
import time

import pytest

from invariants.whole_runs import TRAIN, digests, make, metrics, train
from tunesmith.engine import checkpoint

MOMENTS = 10
WORDS = ("train.save_steps=1", "train.logging_steps=2", "eval.eval_steps=4")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The recipe, and an uninterrupted run of it."""
    folder = tmp_path_factory.mktemp("kill")
    recipe = make(folder)
    return recipe, train(recipe, folder / "whole", *WORDS)


def equal(run, whole):
    assert metrics(run) == metrics(whole)
    assert (run / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert digests(run / "final") == digests(whole / "final")


def resume(run):
    done = subprocess.run([*TRAIN, str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def wait_for(condition, process, seconds=120):
    limit = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.001)


def start(recipe, run):
    return subprocess.Popen(
        [*TRAIN, str(recipe), *WORDS, f"train.output_dir={run}"],
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_kill_and_resume(whole, tmp_path, moment):
    """Half of the moments lie in a save: its partial folder is there; the others some milliseconds after one."""
    recipe, uninterrupted = whole
    seeded = random.Random(moment)
    step = seeded.randint(1, 9)
    run = tmp_path / "run"
    folder = run / "checkpoints"
    sign = folder / (f".step-{step}.partial" if moment % 2 else f"step-{step}")
    process = start(recipe, run)
    wait_for(sign.exists, process)
    time.sleep(seeded.uniform(0, 0.003 if moment % 2 else 0.05))
    process.kill()
    process.wait()
    if not (run / "final").exists():
        said = resume(run)
        assert "going on with" in said
    equal(run, uninterrupted)
    assert not list(folder.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(whole, tmp_path, number):
    recipe, uninterrupted = whole
    run = tmp_path / "run"
    process = subprocess.Popen(
        [*TRAIN, str(recipe), *WORDS[1:], f"train.output_dir={run}"], stderr=subprocess.PIPE, text=True
    )
    wait_for(
        lambda: (run / "metrics.jsonl").exists() and "learning_rate" in (run / "metrics.jsonl").read_text(),
        process,
    )
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number, said
    assert f"tunesmith train {run}" in said
    assert checkpoint.newest(run)[0] is not None and not (run / "final").exists()
    resume(run)
    equal(run, uninterrupted)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path):
    recipe, uninterrupted = whole
    run = tmp_path / "run"
    process = start(recipe, run)
    wait_for((run / "checkpoints" / "step-3").exists, process)
    process.kill()
    process.wait()
    last = checkpoint.steps(run)[-1]
    weights = checkpoint.place(run, last) / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = resume(run)
    assert f"step-{last}/adapter_model.safetensors is damaged" in said.replace(os.linesep, " ")
    equal(run, uninterrupted)


@pytest.mark.slow
def test_changed_data_is_refused(tmp_path):
    recipe = make(tmp_path)
    run = tmp_path / "run"
    process = start(recipe, run)
    wait_for((run / "checkpoints" / "step-1").exists, process)
    process.kill()
    process.wait()
    rows = tmp_path / "rows.json"
    rows.write_text(rows.read_text().replace("sure", "well"))
    done = subprocess.run([*TRAIN, str(run)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "is not what it was when the run began" in done.stderr
