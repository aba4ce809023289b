"""A run killed at any moment and resumed equals one that was not: losses, metrics file and weights, bit for bit.

Six moments are tried; with `TUNESMITH_MOMENTS=20` in the environment as many.
"""

import os
import random
import signal
import time

import pytest

from fixtures_commands import Command, succeed
from invariants.whole_runs import digests, make, metrics, train
from tunesmith.engine import checkpoint

MOMENTS = int(os.environ.get("TUNESMITH_MOMENTS", "6"))
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


def start(recipe, run, words=WORDS):
    return Command("train", recipe, *words, f"train.output_dir={run}")


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
    process.wait_for(sign.exists)
    time.sleep(seeded.uniform(0, 0.003 if moment % 2 else 0.05))
    process.send()
    process.end()
    if not (run / "final").exists():
        assert "going on with" in succeed("train", run)
    equal(run, uninterrupted)
    assert not list(folder.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(whole, tmp_path, number):
    recipe, uninterrupted = whole
    run = tmp_path / "run"
    process, metrics_file = start(recipe, run, WORDS[1:]), run / "metrics.jsonl"
    process.wait_for(lambda: metrics_file.exists() and "learning_rate" in metrics_file.read_text())
    process.send(number)
    code, said = process.end()
    assert code == 128 + number, said
    assert f"tunesmith train {run}" in said
    assert checkpoint.newest(run)[0] is not None and not (run / "final").exists()
    succeed("train", run)
    equal(run, uninterrupted)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path):
    recipe, uninterrupted = whole
    run = tmp_path / "run"
    process = start(recipe, run)
    process.wait_for((run / "checkpoints" / "step-3").exists)
    process.send()
    process.end()
    last = checkpoint.steps(run)[-1]
    weights = checkpoint.place(run, last) / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = succeed("train", run)
    assert f"step-{last}/adapter_model.safetensors is damaged" in said.replace(os.linesep, " ")
    equal(run, uninterrupted)


@pytest.mark.slow
def test_changed_data_is_refused(tmp_path):
    recipe = make(tmp_path)
    run = tmp_path / "run"
    process = start(recipe, run)
    process.wait_for((run / "checkpoints" / "step-1").exists)
    process.send()
    process.end()
    rows = tmp_path / "rows.json"
    rows.write_text(rows.read_text().replace("sure", "well"))
    code, said = Command("train", run).end()
    assert code == 1
    assert "is not what it was when the run began" in said
