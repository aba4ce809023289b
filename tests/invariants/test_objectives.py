"""What must not change a run of any objective: how rows are laid and cut, activations, a kill, where a reference is."""

import json

import pytest
import torch

from invariants.objective_runs import (
    ACCUMULATED,
    BATCH,
    CENTRED,
    EACH_WAY,
    OBJECTIVES,
    ONE_A_ROW,
    SAMPLES,
    STEPS,
    WHOLE,
    equal,
    killed,
    learned,
    new_runs,
)
from invariants.whole_runs import metrics, weights
from tunesmith.cli.main import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return new_runs(tmp_path_factory.mktemp("objectives"))


def rows_of(run):
    return json.loads((run / "ledger.json").read_text())["train"]["packed_rows"]


def whole(objective):
    """The words of a run whose every step is over the whole set."""
    if OBJECTIVES[objective].documents:  # which rows are filled with, and cut where they end
        return [ONE_A_ROW, f"train.max_steps={STEPS}", f"{ACCUMULATED}=4"]
    return [WHOLE]


def are(**facts):
    """The objectives of which something is so."""
    return sorted(name for name, kind in OBJECTIVES.items() if all(getattr(kind, k) == v for k, v in facts.items()))


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("objective", are(documents=False))
def test_rows_and_micro_batches(runs, objective, adapter):
    """All samples in one row, or each in its own: in one micro-batch, in twelve, in three."""
    words = [] if adapter == "lora" else ["adapter=full", "optimizer.learning_rate=1e-3"]
    base = runs.of(objective, WHOLE, *words)
    assert learned(base) and rows_of(base) == STEPS
    for cut in EACH_WAY.values() if adapter == "lora" else [EACH_WAY["1x12"]]:
        other = runs.of(objective, *cut, *words)
        assert rows_of(other) == SAMPLES * STEPS
        equal(base, other)


@pytest.mark.slow
@pytest.mark.parametrize("objective", are(documents=True))
def test_micro_batches_of_documents(runs, objective):
    words = [ONE_A_ROW, f"train.max_steps={STEPS}"]
    base = runs.of(objective, *words, f"{ACCUMULATED}=4")
    assert learned(base)
    equal(base, runs.of(objective, *words, f"{BATCH}=4"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", [name for name, kind in OBJECTIVES.items() if len(kind.branches) > 1 or kind.mismatched]
)
def test_a_beginning_that_stands_once(runs, objective):
    base, alone = runs.of(objective, WHOLE), runs.of(objective, WHOLE, "data.shared_prefix=false")
    tokens = [metrics(run)[-1]["tokens"] for run in (base, alone) if "tokens" in metrics(run)[-1]]
    assert not tokens or tokens[0] < tokens[1]
    equal(base, alone)


@pytest.mark.slow
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_activations_computed_again(runs, objective):
    words = whole(objective)
    equal(runs.of(objective, *words), runs.of(objective, *words, "train.activation_checkpointing=true"))


@pytest.mark.slow
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_going_on_after_a_kill(runs, objective, tmp_path):
    """Bit for bit, also where a step is many micro-batches."""
    words = whole(objective) if OBJECTIVES[objective].documents else EACH_WAY["4x3"]
    base = runs.of(objective, *words)
    run = killed(base, 1, tmp_path / "run")
    assert main(["train", str(run)]) == 0
    assert metrics(run) == metrics(base)
    mine, others = weights(run), weights(base)
    assert all(torch.equal(tensor, others[name]) for name, tensor in mine.items())


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("objective", [name for name, kind in OBJECTIVES.items() if "reference" in kind.needs])
def test_where_the_reference_is(runs, objective, adapter):
    """Made once, in every step (of the model without its adapter, or of a copy), or of a model that is named."""
    words = [WHOLE] if adapter == "lora" else [WHOLE, "adapter=full", "optimizer.learning_rate=1e-3"]
    base = runs.of(objective, *words)
    named = f"reference.model={runs.folder / 'model'}"
    for reference in (["reference.compute=step"], [named], [named, "reference.compute=step"]):
        equal(base, runs.of(objective, *words, *reference))


TOLD = """
from tunesmith.objectives.dpo import DPO


class Told(DPO):
    def compares_samples(self):
        return True
"""


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["once", "step"])
def test_a_loss_that_compares_the_samples_of_a_step(runs, reference):
    """Each pair's margin is measured from the mean of the step's, wherever the others are."""
    objective, words = runs.own("centred", CENTRED), [f"reference.compute={reference}"]
    base = runs.of(objective, WHOLE, *words)
    assert learned(base)
    for cut in EACH_WAY.values():
        other = runs.of(objective, *cut, *words)
        equal(base, other)
        margins = [[line["margins"] for line in metrics(run) if "margins" in line] for run in (base, other)]
        assert margins[0] == pytest.approx(margins[1], rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_what_is_dropped_is_dropped_again(runs):
    """A sum over samples gives the same when it is taken of all of them together, with the same dropout."""
    words = [*EACH_WAY["4x3"], "adapter.lora_dropout=0.3"]
    base = runs.of("dpo", *words)
    told = runs.of(runs.own("told", TOLD), *words)
    equal(base, told)
    with pytest.raises(AssertionError):
        equal(base, runs.of("dpo", *EACH_WAY["4x3"]))
