"""Exports whose bits a run's own rows choose: near to the run, loaded by plain transformers, and priced."""

import json
from importlib.util import find_spec

import pytest
import torch

import fixtures_models
from tunesmith.cli.main import main
from tunesmith.component import pick
from tunesmith.errors import MissingExtra, RunError
from tunesmith.exports import _compressed
from tunesmith.exports.awq import Awq
from tunesmith.exports.gptq import Gptq
from tunesmith.generate.load import load
from tunesmith.seams import Export
from unit.exports.test_exports import flip

ROWS = [{"instruction": f"What is {i} and two?", "output": f"It is {i + 2}."} for i in range(12)]
needed = pytest.mark.skipif(
    find_spec("llmcompressor") is None, reason="llmcompressor is not installed: pip install 'tunesmith[llmcompressor]'"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished LoRA run that held rows out."""
    place = tmp_path_factory.mktemp("calibrated")
    model = fixtures_models.save_model(place / "model", fixtures_models.tiny_model(arch="qwen2"))
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = place / "recipe.yaml"
    recipe.write_text(
        f"model: {{path: {model}, dtype: float32}}\ndata: {{train: [{place}/rows.jsonl], eval: 3}}\nadapter: lora\n"
        f"train: {{output_dir: {place}/run, max_steps: 1, row_tokens: 256, device: cpu}}\n"
        "eval: {prompts: ['What is two and three?']}\n",
        encoding="utf-8",
    )
    assert main(["train", str(recipe)]) == 0
    return place / "run"


def test_rows_are_those_that_the_run_was_trained_on(run):
    tokenizer = fixtures_models.tiny_tokenizer()
    every = [tokenizer.decode(ids) for ids in _compressed.rows_of(run, 100, 512)]
    assert len(every) == len(ROWS) - 3  # three are held out
    assert all(any(row["instruction"] in text and row["output"] in text for row in ROWS) for text in every)
    few = _compressed.rows_of(run, 4, 10)
    assert len(few) == 4 and all(len(ids) == 10 for ids in few)
    assert tokenizer.decode(few[0]) == tokenizer.decode(tokenizer(every[0], add_special_tokens=False)["input_ids"][:10])


@needed
@pytest.mark.parametrize("export", [Gptq(group_size=32, device="cpu"), Awq(group_size=32, device="cpu")])
def test_a_merged_model_whose_bits_rows_have_chosen(export, run, tmp_path):
    from transformers import AutoModelForCausalLM

    report, out = export.write(run, tmp_path / "out"), tmp_path / "out"
    assert report.passed and report.largest_logit_difference > 1e-3
    assert report.notes[0].startswith("perplexity of 3 held-out answers: ")
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    (group,) = said["config_groups"].values()
    weights = group["weights"]
    assert (said["quant_method"], weights["num_bits"], weights["group_size"]) == ("compressed-tensors", 4, 32)
    assert not (out / "recipe.yaml").exists()
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        assert model(torch.tensor([[5, 9, 17]])).logits.isfinite().all()
    assert export.check(run, out) == report
    flip(out / "model.safetensors")
    with pytest.raises(RunError, match=r"its file model\.safetensors is damaged"):
        export.check(run, out)


@needed
def test_one_is_a_base_to_train_an_adapter_beside(run, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    Gptq(group_size=32, device="cpu").write(run, tmp_path / "base")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{path: {tmp_path}/base, dtype: float32}}\ndata: {{train: [{run.parent}/rows.jsonl]}}\nadapter: lora\n"
        f"train: {{output_dir: {tmp_path}/tuned, max_steps: 2, row_tokens: 256, device: cpu}}\neval: {{prompts: []}}\n",
        encoding="utf-8",
    )
    assert main(["train", str(recipe)]) == 0
    assert "quantised: compressed-tensors, as stored" in capsys.readouterr().err
    own, _ = load(str(tmp_path / "base"), "cpu", "float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    ids = torch.tensor([[5, 9, 17]])
    with torch.no_grad():
        assert torch.allclose(own(ids).logits, plain(ids).logits, atol=1e-4)  # as its makers' package reads it


@needed
def test_groups_that_do_not_divide_a_layer_are_refused(run, tmp_path):
    with pytest.raises(RunError, match=r"q_proj is 32 wide, which groups of 128 do not divide: say group_size=32"):
        Gptq(device="cpu").write(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_package_it_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"an export in AWQ needs llmcompressor.*'tunesmith\[llmcompressor\]'"):
        Awq().write(run, tmp_path / "out")


def test_they_are_found_by_name():
    assert pick(Export, {"type": "gptq", "bits": 8}) == Gptq(bits=8)
    assert pick(Export, "awq") == Awq()
