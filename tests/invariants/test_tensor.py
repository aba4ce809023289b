"""Layers whose products are cut for two processes (gloo), or for two groups of two, equal whole ones on one process."""

import json

import pytest

from fixtures_commands import together
from fixtures_models import save_model, tiny_model
from invariants.objective_runs import ACCUMULATED, ONE_A_ROW, equal, killed, learned, new_runs
from invariants.whole_runs import digests, metrics
from tunesmith.cli.main import main

CUT = "parallel.tensor=2"
PARTS = ("parallel.strategy=fsdp",)
FULL = ("adapter=full", "optimizer.learning_rate=1e-3")
PAIRS = "train.row_tokens=160"
HEADS, BIASES = "model.path={folder}/qwen3", "model.path={folder}/qwen2"  # norms of heads; biases of what is cut
CELLS = {  # by what they are: an objective, and what is trained
    "sft-full": ("sft", *FULL, ONE_A_ROW, HEADS),
    "dpo-full": ("dpo", *FULL, PAIRS),
    "reward-full": ("reward", *FULL, PAIRS),
    "sft-lora": ("sft", ONE_A_ROW, BIASES),
    "dpo-lora": ("dpo", PAIRS),
    "reward-lora": ("reward", PAIRS),
}
FOUR = {  # two groups of two: each with all weights of what it computes, or with parts of them
    **{f"{name}-parts": (*CELLS[name], *PARTS) for name in CELLS},
    "dpo-lora-whole": (*CELLS["dpo-lora"], "parallel.strategy=ddp"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = new_runs(tmp_path_factory.mktemp("tensor"))
    for arch in ("qwen2", "qwen3"):
        save_model(made.folder / arch, tiny_model(arch=arch))
    return made


def words(runs, cell):
    """The objective and the words of a cell."""
    return [word.format(folder=runs.folder) for word in cell]


def command(runs, number, name, cell):
    """The command line of a run of `number` processes, whose cache is its own."""
    objective, *rest = words(runs, cell)
    own = (f"data.cache_dir={runs.folder / f'cache-{number}-{name}'}", f"{ACCUMULATED}={24 // number}", CUT)
    return runs.command(objective, runs.folder / f"{number}-{name}", *rest, *own)


def alone(runs, cell):
    """The run of one process that a cell's must equal."""
    one = runs.of(*(word for word in words(runs, cell) if "parallel" not in word), f"{ACCUMULATED}=12")
    assert learned(one)
    return one


@pytest.fixture(scope="module")
def two(runs):
    """What two processes made of every cell; and what they said."""
    said = together(2, *(command(runs, 2, name, cell) for name, cell in CELLS.items()))
    return runs.folder, said


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_cut_layers_equal_whole_ones(runs, two, name):
    equal(alone(runs, CELLS[name]), two[0] / f"2-{name}")


@pytest.mark.slow
def test_it_is_said_and_the_last_weights_are_a_plain_folder(two):
    folder, said = two
    assert said.count("parallel: each layer's products are cut for 2 processes") == len(CELLS)
    config = json.loads((folder / "2-sft-lora" / "final" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    config = json.loads((folder / "2-sft-full" / "final" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]


@pytest.fixture(scope="module")
def four(runs, two):
    """What four processes made of theirs, and of a run of two that was killed after its second step."""
    again = killed(two[0] / "2-sft-lora", 2, runs.folder / "4-of-2")
    together(4, *(command(runs, 4, name, cell) for name, cell in FOUR.items()), ["train", str(again)])
    return runs.folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_two_groups_of_two_equal_one_process(runs, four, name):
    equal(alone(runs, FOUR[name]), four / f"4-{name}")


@pytest.fixture(scope="module")
def again(two, four):
    """What two processes made of runs of two, and of one of four, that were killed after their second step."""
    names = ("2-sft-full", "2-sft-lora", "4-sft-full-parts")
    found = {name: killed(two[0] / name, 2, two[0] / f"again-{name}") for name in names}
    together(2, *(["train", str(run)] for run in found.values()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2-sft-full", "2-sft-lora"])
def test_a_killed_run_goes_on_bit_for_bit(two, again, name):
    whole = two[0] / name
    assert metrics(again[name]) == metrics(whole) and digests(again[name] / "final") == digests(whole / "final")


@pytest.mark.slow
def test_other_numbers_of_processes_go_on_with_the_same_rows(two, four, again):
    equal(two[0] / "2-sft-lora", four / "4-of-2")
    equal(four / "4-sft-full-parts", again["4-sft-full-parts"])
    one = killed(four / "4-sft-full-parts", 2, four / "1-of-4")
    assert main(["train", str(one)]) == 0
    equal(four / "4-sft-full-parts", one)
