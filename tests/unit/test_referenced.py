"""A reference that is an adapter or a run: the numbers are those of the adapter, and not of the model below it."""

import json

import pytest
import yaml

from invariants.whole_runs import make, metrics
from tunesmith.cli.main import main

STEADY = ("model.dtype=float32", "adapter.lora_dropout=0", "eval={}", "train.max_steps=1", "train.save_steps=500")


@pytest.mark.parametrize("compute", ["once", "step"])
def test_an_adapter_and_its_run_are_references(tmp_path, monkeypatch, compute):
    monkeypatch.chdir(tmp_path)
    recipe = make(tmp_path)
    number = iter(range(10))

    def run(*words):
        out = tmp_path / f"run-{next(number)}"
        assert main(["train", str(recipe), *STEADY, *words, f"train.output_dir={out}"]) == 0
        return out

    taught = run("train.max_steps=4", "optimizer.learning_rate=2e-2")
    assert main(["export", str(taught), str(tmp_path / "merged"), "type=merged"]) == 0
    pairs = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No" + " idea" * i} for i in range(12)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    said = yaml.safe_load(recipe.read_text()) | {"objective": "dpo", "reference": {"compute": compute}}
    said["data"]["train"] = str(tmp_path / "pairs.json")
    recipe.write_text(yaml.safe_dump(said))
    merged, *others = (
        metrics(run(f"reference.model={place}"))[0]["eval_loss"]
        for place in (tmp_path / "merged", taught, taught / "final")
    )
    assert others == pytest.approx([merged] * 2, abs=1e-4)
    assert abs(merged - metrics(run())[0]["eval_loss"]) > 1e-2  # of the model below the adapter
