"""What must not change a run of any objective: how rows are laid and cut, activations, a kill, where a reference is.

A run takes three steps, each over the whole set, so that its rows may be laid and cut in every way. The command line is
called in this process: a process of its own would take ten times as long to start as to train.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml

from fixtures_models import save_model
from invariants.whole_runs import metrics, weights
from tunesmith.cli.main import main
from tunesmith.component import all_of
from tunesmith.engine import checkpoint
from tunesmith.seams import Objective

SAMPLES, HELD_OUT, STEPS = 12, 4, 3
LIMIT = 80  # tokens of a sequence; each takes more than half of it, so that no two share a row of this size
ALL = 8192  # tokens of a row that holds the whole set
OBJECTIVES = all_of(Objective)

ONE_A_ROW, WHOLE = f"train.row_tokens={LIMIT}", f"train.row_tokens={ALL}"
BATCH, ACCUMULATED = "train.per_device_train_batch_size", "train.gradient_accumulation_steps"
EACH_WAY = {
    "12x1": [f"{BATCH}=12"],
    "1x12": [f"{ACCUMULATED}=12"],
    "4x3": [f"{BATCH}=4", f"{ACCUMULATED}=3"],
}


def _words(number, length):
    """A text of about so many tokens that is another one for every number."""
    return " ".join(f"{number * 7 + place * 3} and {number + place} is {place}," for place in range(length))


def _answer(number):
    return {"prompt": f"What is {number}?", "completion": _words(number, 4)}


def _pair(number):
    return {"prompt": f"What is {number}?", "chosen": _words(number, 4), "rejected": _words(number + 50, 4)}


ROWS = {  # by the branches and the labels that an objective learns from
    (("answer",), False): _answer,
    (("chosen", "rejected"), False): _pair,
    (("answer",), True): lambda number: _answer(number) | {"label": number % 3 > 0},
}
ROWS_OF = {"classify": lambda number: {"text": _words(number, 5), "label": number % 2}}  # by an objective's own name


@dataclass
class Runs:
    """The runs of one recipe, each made once."""

    folder: Path
    made: dict = field(default_factory=dict)

    def of(self, objective, *words):
        """The folder of a finished run."""
        key = (objective, *words)
        if key not in self.made:
            run = self.folder / f"run-{len(self.made)}"
            common = [f"objective={objective}", f"data.train={self.rows(objective)}", f"train.output_dir={run}"]
            assert main(["train", str(self.folder / "recipe.yaml"), *common, *words]) == 0
            self.made[key] = run
        return self.made[key]

    def rows(self, objective):
        """The file that an objective, shipped or in a file of one's own about pairs, is trained on."""
        kind = OBJECTIVES.get(objective, OBJECTIVES["dpo"])
        path = self.folder / f"{Path(objective).stem}.json"
        if not path.exists():
            make = ROWS_OF.get(objective) or ROWS[kind.branches, kind.labels]
            path.write_text(json.dumps([make(number) for number in range(SAMPLES + HELD_OUT)]))
        return path

    def own(self, name, text):
        """An objective of one's own, as a recipe says it."""
        path = self.folder / f"{name}.py"
        path.write_text(text)
        return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objectives")
    save_model(folder / "model")
    recipe = {
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"train": "", "eval": HELD_OUT, "max_tokens": LIMIT, "cache_dir": str(folder / "cache")},
        "adapter": {"type": "lora", "r": 4, "lora_dropout": 0},
        "optimizer": {"learning_rate": 2e-3},
        "train": {"num_train_epochs": STEPS, "warmup_steps": 0, "save_steps": 1, "save_total_limit": STEPS},
        "eval": {"eval_steps": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Runs(folder)


def rows_of(run):
    return json.loads((run / "ledger.json").read_text())["train"]["packed_rows"]


def equal(one, other):
    """The same losses and gradients to 1e-5 of themselves, and the same weights to 1e-5."""
    first, second = metrics(one), metrics(other)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for a, b in zip(first, second, strict=True):
        for name in a.keys() & {"loss", "eval_loss", "grad_norm"}:
            assert a[name] == pytest.approx(b[name], rel=1e-5), (name, a["step"])
    mine, others = weights(one), weights(other)
    assert mine.keys() == others.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, others[name], rtol=0, atol=1e-5, msg=name)


def learned(run):
    """Whether the losses of a run are those of a model that changes."""
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    return len(losses) == STEPS == len(set(losses))


def killed(run, step, out):
    """What a kill right after the checkpoint of a step and some lines more left of a run."""
    shutil.copytree(run, out)
    shutil.rmtree(out / "final")
    checkpoint.forget_after(out, step)
    record = json.loads((out / "record.json").read_text())
    (out / "record.json").write_text(json.dumps(record | {"status": "running"}))
    return out


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


CENTRED = """
from torch.nn.functional import logsigmoid

from tunesmith.objectives import _sequences
from tunesmith.objectives.dpo import DPO
from tunesmith.types import LossSum


class Centred(DPO):
    def compares_samples(self):
        return True

    def loss(self, scores, batch):
        rewards = self.beta * (_sequences.sums(scores.logps, batch) - _sequences.sums(batch.reference, batch))
        better, worse = _sequences.pairs(batch)
        margins = rewards[better] - rewards[worse]
        return LossSum(-logsigmoid(margins - margins.mean() / 2).sum(), {"margins": (margins.sum(), len(margins))})
"""

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
