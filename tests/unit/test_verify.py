"""`tunesmith verify`: ways that are the same are said to be, and a loss that depends on the cut of rows is found."""

import json
import os
import subprocess
from contextlib import nullcontext

import pytest
import torch
import yaml

from fixtures_models import save_model
from tunesmith import verify
from tunesmith.cli.main import main
from tunesmith.errors import FOLDER_OF_ERRORS, RecipeError, RunError, first_left, left_to_launcher
from tunesmith.recipe import Recipe

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


BREAKS = """
import os
from tunesmith.objectives.sft import SFT
from tunesmith.types import LossSum


class Breaks(SFT):
    def loss(self, scores, batch):
        if "RANK" in os.environ:
            raise RuntimeError("no luck")
        whole = super().loss(scores, batch)
        return LossSum(whole.total * (1 if int(batch.seq[0].max()) else float("nan")), whole.metrics)

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


@pytest.mark.slow
def test_a_way_that_fails_is_not_one_that_is_not_to_be_had(folder, tmp_path, monkeypatch, capsys):
    only(monkeypatch, "a row for each, accumulated", "two processes (ddp)")
    (tmp_path / "breaks.py").write_text(BREAKS)
    assert main(["verify", str(folder / "recipe.yaml"), f"objective={tmp_path / 'breaks.py'}"]) == 1
    shown = capsys.readouterr().out
    assert "a row for each, accumulated  FAILED: the loss is nan at step 1" in shown
    assert "two processes (ddp)          FAILED: RuntimeError: no luck" in shown


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_what_is_not_finite_is_no_difference(tmp_path, where):
    """Whichever value it is: `max` passes over one that is no number behind another."""
    from safetensors.torch import save_file

    for name in ("first", "other"):
        (tmp_path / name / "final").mkdir(parents=True)
        bad = {where: float("nan")} if name == "other" else {}
        lines = [{"loss": one, "grad_norm": 1.0, "learning_rate": 0.1} for one in (1.0, bad.get("loss", 1.0))]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        weights = {"a": torch.zeros(2), "b": torch.tensor([0.0, bad.get("weights", 0.0)])}
        save_file(weights, tmp_path / name / "final" / "model.safetensors")
    with pytest.raises(RunError, match=f"^{where} of .* is not finite"):
        verify._differences(tmp_path / "first", tmp_path / "other")


@pytest.mark.parametrize(
    ("kind", "raised"), [(None, None), (RecipeError, RecipeError), (RunError, RunError), (KeyError, RunError)]
)
def test_processes_see_no_gpu_and_say_whether_they_refuse(folder, tmp_path, monkeypatch, kind, raised):
    """A GPU is what DeepSpeed would take, and the recipe is trained on the CPU."""

    def run(command, env, **options):
        assert env["CUDA_VISIBLE_DEVICES"] == "" and env["PATH"] == os.environ["PATH"]
        monkeypatch.setenv(FOLDER_OF_ERRORS, env[FOLDER_OF_ERRORS])
        return subprocess.CompletedProcess(command, int(kind is not None and left_to_launcher("so", kind)))

    monkeypatch.setattr(verify.subprocess, "run", run)
    recipe = Recipe.load(str(folder / "recipe.yaml"))
    with nullcontext() if raised is None else pytest.raises(raised, match="^so$"):
        assert verify._run(recipe, tmp_path / "out", 4, 2, ["parallel.strategy=ddp"]) == tmp_path / "out"


def test_the_command_line_says_whether_it_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_OF_ERRORS, str(tmp_path))
    assert first_left(tmp_path) is None and main(["train", "quickstart", "optimizer.lr=1"]) == 1
    assert first_left(tmp_path)["refused"]


@pytest.mark.parametrize("word", ["objective=pretrain", "objective=seq2seq"])
def test_rows_that_are_something_else_are_refused(folder, word):
    with pytest.raises(RecipeError, match=f"with {word} a row is something else"):
        verify.verify(str(folder / "recipe.yaml"), [word, "train={}"], print)
