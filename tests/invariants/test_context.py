"""Rows in pieces on two processes (gloo), and on two groups of two, equal whole rows on one process."""

import json

import pytest

from fixtures_commands import together
from fixtures_models import save_model, tiny_model
from invariants.objective_runs import (
    ACCUMULATED,
    BATCH,
    CENTRED,
    ONE_A_ROW,
    WHOLE,
    equal,
    killed,
    learned,
    new_runs,
)
from invariants.whole_runs import digests, metrics
from tunesmith.cli.main import main

PIECES = "parallel.context=2"
FULL = ("adapter=full", "optimizer.learning_rate=1e-3")
STEP = "reference.compute=step"
MADE_ONCE = ("objective.top_k=8", "teacher.compute=once")
CELLS = {
    "sft-lora": ("sft", WHOLE),
    "sft-full": ("sft", WHOLE, *FULL),
    "sft-rows": ("sft", ONE_A_ROW, f"{BATCH}=3", f"{ACCUMULATED}=4"),
    "sft-checkpointed": ("sft", WHOLE, *FULL, "train.activation_checkpointing=selective"),
    "sft-parts": ("sft", WHOLE, *FULL, "parallel.strategy=fsdp"),
    "pretrain": ("pretrain", ONE_A_ROW, f"{ACCUMULATED}=4"),
    "dpo-lora": ("dpo", WHOLE),
    "dpo-lora-step": ("dpo", WHOLE, STEP),
    "dpo-full-step": ("dpo", WHOLE, *FULL, STEP),
    "centred": ("centred", "train.row_tokens=200", f"{ACCUMULATED}=6"),
    "kto": ("kto", WHOLE),
    "reward-lora": ("reward", WHOLE),
    "reward-full": ("reward", WHOLE, *FULL),
    "token_classify": ("token_classify", WHOLE),
    "distill": ("distill", WHOLE, *MADE_ONCE),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return new_runs(tmp_path_factory.mktemp("context"))


def words(runs, name):
    """The objective and the words of a cell."""
    objective, *rest = CELLS[name]
    return (runs.own("centred", CENTRED) if objective == "centred" else objective, *rest)


def command(runs, number, name, objective, *words):
    """The command line of a run of `number` processes, whose cache is its own."""
    return runs.command(objective, runs.folder / f"{number}-{name}", f"data.cache_dir={runs.folder / name}", *words)


MODELS = {  # by what of their attention meets pieces
    "key heads that processes share out by threes": {"num_attention_heads": 6, "num_key_value_heads": 3},
    "windows and soft caps": {"arch": "gemma2", "sliding_window": 16},
    "norms of heads": {"arch": "qwen3"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_pieces_equal_a_whole_row(runs, name):
    said = together(2, command(runs, 2, name, *words(runs, name), PIECES))
    assert said.count("parallel: each row lies in pieces on 2 processes") == 1
    one = runs.of(*(word for word in words(runs, name) if "fsdp" not in word))
    assert learned(one)
    equal(one, runs.folder / f"2-{name}")
    assert [line["tokens"] for line in metrics(one) if "loss" in line] == [
        line["tokens"] for line in metrics(runs.folder / f"2-{name}") if "loss" in line
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_heads_of_every_kind_are_shared_out(runs, name):
    folder = runs.folder / name
    save_model(folder, tiny_model(hidden_size=48, **MODELS[name]))
    path = f"model.path={folder}"
    together(2, command(runs, 2, name.replace(" ", "-"), "sft", WHOLE, path, PIECES))
    one = runs.of("sft", WHOLE, path)
    assert learned(one)
    equal(one, runs.folder / f"2-{name.replace(' ', '-')}")


@pytest.fixture(scope="module")
def resumed(runs):
    """A run in pieces; and what two processes, and four of two groups, made of it when it was killed."""
    name = f"{ACCUMULATED}=12"
    together(2, command(runs, 2, "killed", "sft", *FULL, ONE_A_ROW, name, PIECES))
    whole = runs.folder / "2-killed"
    again = {number: killed(whole, 2, runs.folder / f"again-{number}") for number in (1, 2, 4)}
    for number in (2, 4):
        together(number, ["train", str(again[number])])
    return whole, again


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit_and_elsewhere_with_the_same_rows(resumed):
    whole, again = resumed
    assert metrics(again[2]) == metrics(whole) and digests(again[2] / "final") == digests(whole / "final")
    equal(whole, again[4])
    assert json.loads((again[4] / "record.json").read_text())["derived"]["train.gradient_accumulation_steps"] == 6
    assert main(["train", str(again[1])]) == 0
    equal(whole, again[1])


FOUR = {
    "two groups of two": (f"{ACCUMULATED}=6", PIECES),
    "two groups of two, in parts": (f"{ACCUMULATED}=6", PIECES, "parallel.strategy=fsdp"),
    "more processes than key heads": (f"{ACCUMULATED}=12", "parallel.context=4"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_processes_equal_one(runs, name):
    """Also where the last step, and the held-out rows, leave nothing for a group."""
    uneven = ("data.eval=3",)
    out = name.replace(" ", "-").replace(",", "")
    cases = {"sft": (*FULL, ONE_A_ROW), "dpo": (STEP, "train.row_tokens=160")}
    together(4, *(command(runs, 4, f"{out}-{one}", one, *uneven, *cases[one], *FOUR[name]) for one in cases))
    for objective, own in cases.items():
        one = runs.of(objective, *uneven, *own, f"{ACCUMULATED}=12")
        assert learned(one)
        equal(one, runs.folder / f"4-{out}-{objective}")
