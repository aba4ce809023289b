"""Runs of any objective on a tiny model and a few rows, and what must be equal between them.

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

from fixtures_models import save_model, tiny_model, tiny_seq2seq, tiny_seq2seq_tokenizer
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
    (("chosen", "rejected"), True): _pair,
    (("answer",), True): lambda number: _answer(number) | {"label": number % 3 > 0},
}


def _tagged(number):
    words = _words(number, 5).split()
    return {"tokens": words, "tags": [len(word) % 2 for word in words]}


ROWS_OF = {  # by an objective's own name
    "classify": lambda number: {"text": _words(number, 5), "label": number % 2},
    "token_classify": _tagged,
}
WORDS_OF = {  # of its command line
    "classify": ["objective.num_labels=2"],
    "token_classify": ["objective.num_labels=2"],
    "distill": ["teacher.model={folder}/teacher"],
    "seq2seq": ["model.path={folder}/two-sided", ONE_A_ROW],
}


@dataclass
class Runs:
    """The runs of one recipe, each made once."""

    folder: Path
    made: dict = field(default_factory=dict)

    def command(self, objective, run, *words):
        """The command line of a run, without the program's name."""
        common = [f"objective={objective}", f"data.train={self.rows(objective)}", f"train.output_dir={run}"]
        own = [word.format(folder=self.folder) for word in WORDS_OF.get(objective, ())]
        return ["train", str(self.folder / "recipe.yaml"), *common, *own, *words]

    def of(self, objective, *words):
        """The folder of a finished run."""
        key = (objective, *words)
        if key not in self.made:
            run = self.folder / f"run-{len(self.made)}"
            assert main(self.command(objective, run, *words)) == 0
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


def new_runs(folder):
    """The recipe, in a folder, and no run yet."""
    save_model(folder / "model", tiny_model(classifier_dropout=0.0))  # a new head for words would drop some
    save_model(folder / "two-sided", tiny_seq2seq(), tiny_seq2seq_tokenizer())
    save_model(folder / "teacher", tiny_model(seed=7, hidden_size=48, intermediate_size=96))
    recipe = {
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"train": "", "eval": HELD_OUT, "max_tokens": LIMIT, "cache_dir": str(folder / "cache")},
        "adapter": {"type": "lora", "r": 4, "lora_dropout": 0},
        "optimizer": {"learning_rate": 2e-3, "epsilon": 1e-5},  # 1e-8 makes steps of gradients that are rounding alone
        "train": {"num_train_epochs": STEPS, "warmup_steps": 0, "save_steps": 1, "save_total_limit": STEPS},
        "eval": {"eval_steps": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Runs(folder)


def equal(one, other, close=1e-5):
    """The same losses and gradients to 1e-5 of themselves, and the same weights to 1e-5, or to what is said."""
    first, second = metrics(one), metrics(other)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for a, b in zip(first, second, strict=True):
        for name in a.keys() & {"loss", "eval_loss", "grad_norm"}:
            assert a[name] == pytest.approx(b[name], rel=close), (name, a["step"])
    mine, others = weights(one), weights(other)
    assert mine.keys() == others.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, others[name], rtol=0, atol=close, msg=name)


def learned(run):
    """Whether the losses of a run are those of a model that changes."""
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    return len(losses) >= STEPS and len(losses) == len(set(losses))


def killed(run, step, out):
    """What a kill right after the checkpoint of a step and some lines more left of a run."""
    shutil.copytree(run, out)
    shutil.rmtree(out / "final")
    checkpoint.forget_after(out, step)
    record = json.loads((out / "record.json").read_text())
    (out / "record.json").write_text(json.dumps(record | {"status": "running"}))
    return out


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
