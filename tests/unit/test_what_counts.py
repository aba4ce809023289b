"""What a step counts: no token that is not learned, no metric of nothing, no update by a weight of 0."""

import json

import pytest
from safetensors.torch import load_file

from fixtures_models import save_model
from tunesmith import Recipe, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counts")
    save_model(folder / "model")

    def made(name, rows, **sections):
        (folder / f"{name}.json").write_text(json.dumps(rows))
        data = {"train": str(folder / f"{name}.json"), "max_tokens": 64, "cache_dir": str(folder / "cache"), "eval": 4}
        options = {"num_train_epochs": 1, "row_tokens": 128, "output_dir": str(folder / f"run-{name}"), "device": "cpu"}
        model = {"path": str(folder / "model"), "dtype": "float32"}
        recipe = Recipe(
            model=model, data=data | sections.pop("data", {}), train=options | sections.pop("train", {}), **sections
        )
        return train(recipe)

    return made


def lines(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_the_answers_of_other_samples_are_no_trained_tokens_and_bad_answers_that_are_not_there_have_no_metric(run):
    rows = [{"prompt": f"Is {n} odd?", "completion": f"It is {n}.", "label": True} for n in range(12)]
    found = run("kto", rows, objective="kto")
    ledger = json.loads((found.folder / "ledger.json").read_text())["train"]
    trained = [line for line in lines(found) if "loss" in line][-1]["trained_tokens"]
    assert 0 < trained < ledger["trained_tokens"]  # those of the held-out samples are in the account too
    share = trained / ledger["trained_tokens"]
    assert share == pytest.approx(8 / 12, rel=0.1)
    for line in lines(found):
        names = {name.removeprefix("eval_") for name in line}
        assert "rewards_desirable" in names and not names & {"accuracy", "rewards_undesirable", "logps_undesirable"}


def test_classes_of_no_weight_change_nothing(run):
    rows = [{"text": f"{n} and {n}", "label": 0} for n in range(12)]
    classes = {"type": "classify", "num_labels": 2, "class_weights": [0, 1]}
    found = run("weightless", rows, objective=classes)
    assert all(line["grad_norm"] == 0 for line in lines(found) if "grad_norm" in line)
    (file,) = (found.folder / "final").glob("*.safetensors")
    assert all(tensor.isfinite().all() for tensor in load_file(file).values())
