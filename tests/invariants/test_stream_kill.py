"""A streamed run that is killed and resumed equals one that was not: weights, metrics and ledger, bit for bit.

Three moments are tried; with `TUNESMITH_MOMENTS=20` in the environment as many.
"""

import os
import random
import signal
import time

import pytest
import yaml

from fixtures_chats import chat, write_rows
from fixtures_commands import Command, succeed
from invariants.whole_runs import digests, make, metrics, train

MOMENTS = int(os.environ.get("TUNESMITH_MOMENTS", "3"))
WORDS = ("train.save_steps=1", "train.logging_steps=2", "eval.eval_steps=6")
STEPS = 14


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A recipe that streams two sources with small blocks, in two processes, and an uninterrupted run of it."""
    folder = tmp_path_factory.mktemp("stream")
    path = make(folder)
    said = yaml.safe_load(path.read_text())
    other = write_rows(folder / "other.jsonl", [chat(f"Say {i}.", f"{i}, " + "yes " * (i % 6)) for i in range(40)])
    held = write_rows(folder / "held.jsonl", [chat(f"Is it {i}?", f"It is {i}.") for i in range(6)])
    said["data"] |= {
        "train": [str(folder / "rows.json"), {"path": other, "weight": 2}],
        "eval": [held],
        "mix": "all_exhausted",
        "streaming": True,
        "buffer_samples": 9,
        "num_processes": 2,
    }
    said["train"] = {"row_tokens": 128, "max_steps": STEPS, "save_total_limit": 3, "gradient_accumulation_steps": 2}
    path.write_text(yaml.safe_dump(said))
    return path, train(path, folder / "whole", *WORDS)


def equal(run, whole):
    assert metrics(run) == metrics(whole)
    assert (run / "ledger.json").read_bytes() == (whole / "ledger.json").read_bytes()
    assert digests(run / "final") == digests(whole / "final")


def start(recipe, run, own_group=False):
    return Command("train", recipe, *WORDS, f"train.output_dir={run}", own_group=own_group)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_kill_and_resume(whole, tmp_path, moment):
    recipe, uninterrupted = whole
    seeded = random.Random(moment)
    run = tmp_path / "run"
    process = start(recipe, run)
    process.wait_for((run / "checkpoints" / f"step-{seeded.randint(1, STEPS - 3)}").exists)
    time.sleep(seeded.uniform(0, 0.05))
    process.send()
    process.end()
    if not (run / "final").exists():
        assert "going on with" in succeed("train", run)
    equal(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a terminal's Ctrl-C goes to a group of processes")
def test_ctrl_c_in_a_terminal_reaches_the_rendering_processes_too_and_saves(whole, tmp_path):
    """The signal goes to the whole group, as a terminal sends it; those that render leave the end to the run."""
    recipe, uninterrupted = whole
    run = tmp_path / "run"
    process = start(recipe, run, own_group=True)
    process.wait_for((run / "checkpoints" / "step-2").exists)
    os.killpg(process.pid, signal.SIGINT)
    code, said = process.end()
    assert code == 128 + signal.SIGINT, said
    assert f"tunesmith train {run}" in said and "Traceback" not in said
    succeed("train", run)
    equal(run, uninterrupted)


@pytest.mark.slow
def test_another_number_of_processes_or_none_makes_the_same_run(whole, tmp_path):
    recipe, uninterrupted = whole
    equal(train(recipe, tmp_path / "run", *WORDS, "data.num_processes=1"), uninterrupted)


@pytest.mark.slow
def test_a_changed_file_is_refused(whole, tmp_path):
    recipe, _ = whole
    copy = tmp_path / "recipe.yaml"
    rows = write_rows(tmp_path / "rows.jsonl", [chat(f"Say {i}.", f"{i}, sure") for i in range(200)])
    said = yaml.safe_load(recipe.read_text())
    said["data"] |= {"train": [rows], "num_processes": 1}
    copy.write_text(yaml.safe_dump(said))
    run = tmp_path / "run"
    process = start(copy, run)
    process.wait_for((run / "checkpoints" / "step-2").exists)
    process.send()
    process.end()
    assert not (run / "final").exists()
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text.replace("199, sure", "199, well"))  # a row that no block has reached
    code, said = Command("train", run).end()
    assert code == 1 and "the data of" in said and "is not what it was" in said
