"""A model whose weights lie in parts on two or four processes (gloo, torchrun) equals a whole one on one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from invariants.objective_runs import ACCUMULATED, SAMPLES, equal, learned, new_runs

SEVERAL = Path(__file__).with_name("several_commands.py")
SHARED = "parallel.strategy=fsdp"
FULL = ("adapter=full", "optimizer.learning_rate=1e-3")
STEP = "reference.compute=step"
CELLS = {
    "sft-lora": ("sft",),
    "sft-full": ("sft", *FULL),
    "sft-freeze": ("sft", "adapter=freeze", "adapter.num_layers=1"),
    "sft-checkpointed": ("sft", *FULL, "train.activation_checkpointing=true"),
    "dpo-lora": ("dpo",),
    "dpo-lora-step": ("dpo", STEP),
    "dpo-full": ("dpo", *FULL),
    "reward-lora": ("reward",),
    "reward-full": ("reward", *FULL),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return new_runs(tmp_path_factory.mktemp("shared"))


def together(number, folder, commands):
    """Command lines of `number` processes, one after the other, once these are started."""
    file = folder / "commands.json"
    file.write_text(json.dumps(commands))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
    done = subprocess.run([*torchrun, str(SEVERAL), str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def command(runs, number, name, objective, *words):
    """The command line of a run of `number` processes, whose cache is its own."""
    words = (f"{ACCUMULATED}={SAMPLES // number}", f"data.cache_dir={runs.folder / f'cache-{number}-{name}'}", *words)
    return runs.command(objective, runs.folder / f"{number}-{name}", *words)


@pytest.fixture(scope="module")
def two(runs):
    """What two processes made of every cell, and of a killed run of full weights; and what they said."""
    folder = runs.folder
    said = together(2, folder, [command(runs, 2, name, *words, SHARED) for name, words in CELLS.items()])
    return folder, said


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_parts_equal_a_whole(runs, two, name):
    one = runs.of(CELLS[name][0], f"{ACCUMULATED}={SAMPLES}", *CELLS[name][1:])
    assert learned(one)
    equal(one, two[0] / f"2-{name}")


@pytest.mark.slow
def test_it_is_said_and_the_last_weights_are_a_plain_folder(two):
    folder, said = two
    assert said.count("parallel: the model's weights are shared out among processes (2), in 2 layers") == len(CELLS)
    config = json.loads((folder / "2-sft-full" / "final" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not list((folder / "2-sft-full" / "final").glob("**/*.distcp"))
