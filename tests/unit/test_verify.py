"""`tunesmith verify`: ways that are the same are said to be, and a loss that depends on the cut of rows is found."""

import json

import pytest
import yaml

from fixtures_models import save_model
from tunesmith import verify
from tunesmith.cli.main import main
from tunesmith.errors import RecipeError

ITSELF = """
from tunesmith.objectives.sft import SFT
from tunesmith.types import LossSum


class Mean(SFT):
    def loss(self, scores, batch):
        whole = super().loss(scores, batch)
        return LossSum(whole.total / batch.weight.sum() * 10, whole.metrics)

    def is_likelihood(self):
        return False
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe whose rows are of many lengths, with all that draws numbers; a row of them is no row of its format."""
    folder = tmp_path_factory.mktemp("verify")
    save_model(folder / "model")
    rows = [{"prompt": f"What is {i}?", "completion": f"{i} is {i}, " * (1 + i % 4)} for i in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, [*rows[:3], {"prompt": "a"}, *rows[3:]])))
    (folder / "itself.py").write_text(ITSELF)
    said = {
        "model": str(folder / "model"),
        "data": {"train": str(folder / "rows.jsonl"), "eval": 2, "max_tokens": 64},
        "adapter": {"type": "lora", "r": 4, "lora_dropout": 0.5},
        "optimizer": {"learning_rate": 5e-3, "epsilon": 1e-5},
        "train": {"neftune_noise_alpha": 5},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(said))
    return folder


def only(patch, *ways):
    patch.setattr(verify, "WAYS", {way: verify.WAYS[way] for way in ("one row of all samples", *ways)})


@pytest.mark.slow
def test_rows_cut_and_shared_in_any_way_are_the_same(folder, capsys):
    assert main(["verify", str(folder / "recipe.yaml")]) == 0
    said = capsys.readouterr()
    assert said.out.count(" same\n") == len(verify.WAYS) and "DIFFERS" not in said.out and "refused" not in said.out
    assert "6 samples, 3 steps" in said.err


def test_a_loss_that_divides_by_itself_is_found(folder, monkeypatch, capsys):
    only(monkeypatch, "a row for each, in one batch", "a row for each, accumulated")
    assert main(["verify", str(folder / "recipe.yaml"), f"objective={folder / 'itself.py'}", "--json"]) == 1
    first, batch, accumulated = json.loads(capsys.readouterr().out)
    assert first["same"] and batch["same"] and not accumulated["same"]
    assert accumulated["differences"]["grad_norm"] > 0.1


def test_a_way_that_is_not_to_be_had_is_said(folder, monkeypatch, capsys):
    only(monkeypatch, "two processes (fsdp)")
    words = ["adapter=full", "optimizer=muon"]
    assert main(["verify", str(folder / "recipe.yaml"), *words]) == 0
    assert "optimizer=muon updates whole weights" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["objective=pretrain", "objective=seq2seq"])
def test_rows_that_are_something_else_are_refused(folder, word):
    with pytest.raises(RecipeError, match=f"with {word} a row is something else"):
        verify.verify(str(folder / "recipe.yaml"), [word, "train={}"], print)
