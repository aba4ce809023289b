"""What DeepSpeed keeps in files on a disk, on two processes (gloo), equals one process with all of it in memory."""

import contextlib
import json
import threading
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch

from fixtures_commands import together
from fixtures_models import save_model, tiny_model
from invariants.objective_runs import ACCUMULATED, SAMPLES, equal, killed, learned, new_runs
from invariants.whole_runs import digests, metrics, weights
from tunesmith.cli.main import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

SMALL = 300_000  # weights of a group; of 262,144 on, which take 1 MB, DeepSpeed keeps one in files
WIDE = {"hidden_size": 248, "head_dim": 62, "intermediate_size": 2120, "num_hidden_layers": 1}
"""Half of a large matrix is more than 1 MB, and a part of a matrix begins at no multiple of 512 bytes."""
ALONE = f"{ACCUMULATED}={SAMPLES}"
FULL = ("adapter=full", "optimizer.learning_rate=1e-3")
LORA = ("adapter.r=128",)  # less than 1 MB of state stays in memory
ZERO = ("parallel.strategy=deepspeed", "parallel.zero_stage=3")
PATH = ("parallel.offload=nvme", "parallel.nvme_path={folder}/disk")
GROUPS = ("parallel.deepspeed_config={folder}/groups.json",)
CELLS = {
    "sft-full": ("sft", *FULL, *ZERO, *PATH, *GROUPS),
    "sft-lora": ("sft", *LORA, *ZERO, *PATH, *GROUPS),
    "dpo-full": ("dpo", *FULL, *ZERO, *PATH, *GROUPS),
    "reward-lora": ("reward", *LORA, *ZERO, *PATH),
    "ademamix": ("sft", *FULL, "optimizer=ademamix", *ZERO, *PATH, *GROUPS),
    "best": ("sft", *FULL, "eval.load_best_model_at_end=true", *ZERO, "parallel.offload=nvme", *GROUPS),
    "pipeline": ("sft", *FULL, ZERO[0], "parallel.deepspeed_config={folder}/pipeline.json"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    groups = {"stage": 3, "sub_group_size": SMALL}
    (folder / "groups.json").write_text(json.dumps({"zero_optimization": groups}))
    ahead = {"device": "nvme", "nvme_path": str(folder / "disk"), "pipeline_read": True, "pipeline_write": True}
    said = {"zero_optimization": groups | {"offload_optimizer": ahead}, "aio": {"intra_op_parallelism": 2}}
    (folder / "pipeline.json").write_text(json.dumps(said))
    found = new_runs(folder)
    save_model(folder / "model", tiny_model(scale=0.05, classifier_dropout=0.0, **WIDE))
    return found


HALF = ("sft", *LORA, "train.bf16=true", *ZERO, *GROUPS)  # in pieces, and away, it rounds otherwise than whole
ALL = CELLS | {"bf16": (*HALF, *PATH), "bf16-on-the-host": (*HALF, "parallel.offload=cpu")}


def command(runs, number, name):
    """The command line of a cell by `number` processes, whose cache is its own."""
    objective, *words = (word.format(folder=runs.folder) for word in ALL[name])
    words = (f"{ACCUMULATED}={SAMPLES // number}", f"data.cache_dir={runs.folder / f'cache-{number}'}", *words)
    return runs.command(objective, runs.folder / f"{number}-{name}", *words)


@contextmanager
def watched(folder):
    """The names of the files of state that are in a folder while the block runs."""
    seen, over = set(), threading.Event()

    def watch():
        while not over.wait(0.02):
            with contextlib.suppress(FileNotFoundError):  # a folder that goes while it is looked at
                seen.update(path.name for path in folder.glob(".tunesmith-*.swap/zero_stage_3/optimizer/rank*/*"))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        over.set()
        watching.join()


@pytest.fixture(scope="module")
def two(runs):
    """What two processes said as they made all cells, and the files that they had state in."""
    with watched(runs.folder / "disk") as seen:
        said = together(2, *(command(runs, 2, name) for name in ALL))
    return said, seen


@pytest.mark.parametrize("name", CELLS)
def test_two_processes_with_files_equal_one(runs, two, name):
    objective, *words = (word for word in CELLS[name] if not word.startswith("parallel."))
    one = runs.of(objective, ALONE, *words)
    assert learned(one)
    equal(one, runs.folder / f"2-{name}")


def test_half_precision_is_the_same_with_files_and_on_the_host(runs, two):
    equal(runs.folder / "2-bf16-on-the-host", runs.folder / "2-bf16")


def test_state_is_in_files_while_it_trains_and_nowhere_after(runs, two):
    said, seen = two
    kinds = {name.partition("-")[0] for name in seen if "-" in name}
    assert kinds >= {"exp_avg", "exp_avg_sq"} and any(name[0].isdigit() for name in seen)  # weights have numbers
    assert not any("gradient" in name for name in seen)
    lines = [line for line in said.splitlines() if "parallel: DeepSpeed's ZeRO-3 on 2 processes" in line]
    assert len(lines) == len(ALL)
    filed = [line for line in lines if "in files" in line]
    assert len(filed) == len(CELLS) + 1
    for line in filed:
        in_files = int(line.partition("the state of ")[2].partition(" weights in files")[0].replace(",", ""))
        assert in_files > 500_000
    assert list((runs.folder / "disk").iterdir()) == [] and list(runs.folder.glob(".tunesmith-*")) == []


def test_a_killed_run_goes_on_bit_for_bit_and_elsewhere_with_the_same_rows(runs, two):
    names = ("sft-full", "sft-lora", "pipeline")
    whole = {name: runs.folder / f"2-{name}" for name in names}
    for number in (2, 4, 1):
        again = {name: killed(whole[name], 2, runs.folder / f"again-{number}-{name}") for name in names}
        commands = [["train", str(run)] for run in again.values()]
        if number == 1:
            assert [main(one) for one in commands] == [0] * len(names)
        else:
            together(number, *commands)
        for name, run in again.items():
            equal(whole[name], run)
            if number == 2:
                assert metrics(run) == metrics(whole[name])
                assert digests(run / "final") == digests(whole[name] / "final")


def test_two_processes_go_on_with_what_lay_whole_or_in_memory(runs, two):
    objective, *words = (word.format(folder=runs.folder) for word in CELLS["sft-full"])
    one = runs.of(objective, ALONE, *words)
    again = killed(one, 2, runs.folder / "of-one")
    together(2, ["train", str(again)])
    equal(one, again)


def test_a_checkpoint_is_exported(runs, two):
    from safetensors.torch import load_file

    run = runs.folder / "2-sft-full"
    assert main(["export", str(run / "checkpoints" / "step-3"), str(runs.folder / "exported")]) == 0
    (path,) = (runs.folder / "exported").glob("*.safetensors")
    exported, final = load_file(path), weights(run)
    assert exported.keys() == final.keys()
    assert all(torch.equal(one, final[name]) for name, one in exported.items())


def test_a_folder_that_cannot_be_written_is_said_in_a_line(runs):
    place = runs.folder / "2-nowhere"
    words = [word for word in command(runs, 1, "sft-full") if "output_dir" not in word]
    words = [word.replace(str(runs.folder / "disk"), "/proc/none") for word in words]
    said = together(2, [*words, f"train.output_dir={place}"], code=1)
    assert "parallel.nvme_path: /proc/none cannot be written, or locked" in said and not place.exists()
