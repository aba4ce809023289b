"""Rows in pieces on two processes (gloo), and on two groups of two, equal whole rows on one process."""

import pytest

from fixtures_commands import together
from invariants.objective_runs import (
    ACCUMULATED,
    BATCH,
    CENTRED,
    ONE_A_ROW,
    WHOLE,
    equal,
    learned,
    new_runs,
)

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


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_pieces_equal_a_whole_row(runs, name):
    together(2, command(runs, 2, name, *words(runs, name), PIECES))
    one = runs.of(*(word for word in words(runs, name) if "fsdp" not in word))
    assert learned(one)
    equal(one, runs.folder / f"2-{name}")
