"""Exports in few bits: loaded by plain transformers, near to the run, and priced on its held-out rows."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fixtures_models
from tunesmith.cli.main import main
from tunesmith.component import pick
from tunesmith.errors import DataError, RunError
from tunesmith.exports import bnb
from tunesmith.exports.bnb import Bnb
from tunesmith.exports.formats import quantised
from tunesmith.exports.torchao import TorchAO
from tunesmith.generate.engine import Generator
from tunesmith.prediction.rows import Asked, Rows
from tunesmith.seams import Export
from unit.exports.test_exports import flip, make_run, unchanged

bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
LABELS = ((5, 9, 17), (40, 41, 42, 43))


def asked(run, tokenizer, say):
    messages = ({"role": "user", "content": "What is two and three?"},)
    return Rows([Asked(f"file:{at}", messages, (), "", label) for at, label in enumerate(LABELS)])


@pytest.mark.parametrize(
    "export",
    [
        pytest.param(Bnb(), marks=bitsandbytes),
        pytest.param(Bnb(bits=8), marks=bitsandbytes),
        pytest.param(TorchAO(), marks=torchao),
        pytest.param(TorchAO(scheme="float8_weight_only"), marks=torchao),
    ],
)
def test_a_merged_model_in_few_bits(export, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(quantised, "held_out", asked)
    run = make_run(tmp_path, "qwen2", prompts=["What is two and three?"])
    report, out = export.write(run, tmp_path / "out"), tmp_path / "out"
    assert report.passed and 0.01 < report.largest_logit_difference
    assert report.notes[0].startswith("perplexity of 2 held-out answers: ")
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == {Bnb: "bitsandbytes", TorchAO: "torchao"}[type(export)]
    assert AutoModelForCausalLM.from_pretrained(out).generation_config.eos_token_id == [0, 2]
    assert export.check(run, out) == report
    flip(out / "model.safetensors")
    with pytest.raises(RunError, match=r"its file model\.safetensors is damaged"):
        export.check(run, out)


def test_the_price_is_the_perplexity_of_answers(tmp_path, monkeypatch):
    """As plain transformers' own loss gives it, over the tokens of all answers together."""
    monkeypatch.setattr(quantised, "held_out", asked)
    one = Generator.open(str(make_run(tmp_path, "qwen2")))
    cost = quantised.Cost(tmp_path / "run", one.tokenizer)
    lost = 0.0
    for prompt, label in cost.rows:
        ids = torch.tensor([[*prompt, *label]])
        wanted = torch.tensor([[-100] * len(prompt) + list(label)])
        with torch.no_grad():
            lost += one.model(ids, labels=wanted).loss.item() * len(label)
    cost.before = cost.of(one.model)
    assert math.isclose(cost.before, math.exp(lost / 7), rel_tol=1e-5)
    assert cost.note(2 * cost.before).endswith("(2.000 times)")


def test_a_run_without_held_out_rows_says_so(tmp_path, monkeypatch):
    def none(run, tokenizer, say):
        raise DataError("there are no rows")

    monkeypatch.setattr(quantised, "held_out", none)
    cost = quantised.Cost(tmp_path, None)
    assert math.isnan(cost.of(None)) and cost.note(math.nan) == "perplexity was not compared: there are no rows"


@bitsandbytes
def test_rows_that_the_run_held_out_are_found_from_another_folder(tmp_path, monkeypatch, capsys):
    """The run is named from where the command is given, and its rows from where it was trained."""
    rows = [{"instruction": f"What is {i} and two?", "output": f"It is {i + 2}."} for i in range(6)]
    fixtures_models.save_model(tmp_path / "base", fixtures_models.tiny_model(arch="qwen2"))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "recipe.yaml").write_text(
        "model: {path: base, dtype: float32}\ndata: {train: rows.json, eval: 2, cache_dir: cache}\n"
        "train: {output_dir: runs/first, max_steps: 1, row_tokens: 128, device: cpu}\n"
        "eval: {prompts: [What is two and three]}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["train", "recipe.yaml"]) == 0
    monkeypatch.chdir(tmp_path / "runs")
    assert main(["export", "first", "out", "type=bnb"]) == 0
    assert "perplexity of 2 held-out answers: " in capsys.readouterr().out
    (tmp_path / "base").rename(tmp_path / "gone")  # what cannot be read costs the price alone
    cost = quantised.Cost(Path("first"), None)
    assert cost.rows == [] and "base" in cost.note(math.nan)


@bitsandbytes
def test_one_that_costs_more_than_its_bits_explain_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(bnb, "COSTS", {4: 1e-3})
    run = make_run(tmp_path, "qwen2", prompts=["What is two and three?"])
    with pytest.raises(RunError, match="out was not written: it does not answer as the run does"):
        Bnb().write(run, tmp_path / "out")
    assert unchanged(tmp_path)


def test_they_are_found_by_name():
    assert pick(Export, {"type": "bnb", "bits": 8}) == Bnb(bits=8)
    assert pick(Export, "torchao") == TorchAO()
