"""`tunesmith compare`: recipes trained in turn, or finished runs, as a table or as JSON."""

import json

import pytest

from fixtures_models import save_model
from tunesmith import compare
from tunesmith.cli.main import main
from tunesmith.errors import RunError


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Two recipes of the same rows: the weights of a small update, and all of them."""
    folder = tmp_path_factory.mktemp("compare")
    save_model(folder / "model")
    rows = [{"prompt": f"Say {i}.", "chosen": f"{i}!", "rejected": "No, never!"} for i in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = (
        f"model: {folder}/model\nobjective: dpo\n"
        f"data: {{train: {folder}/rows.jsonl, eval: 4, max_tokens: 64, cache_dir: {folder}/cache}}\n"
    )
    (folder / "small.yaml").write_text(f"{common}adapter: {{type: lora, r: 2}}\n")
    (folder / "all.yaml").write_text(f"{common}adapter: full\n")
    return folder


@pytest.fixture(scope="module")
def made(recipes):
    """What is found of both, each trained in a process of its own; and what was said."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(recipes)
        return compare.compare(["small.yaml", "all.yaml"], ["train.max_steps=2"], said.append), said


@pytest.mark.slow
def test_recipes_are_trained_in_turn(recipes, made):
    found, said = made
    assert said == ["1 of 2: small.yaml", "2 of 2: all.yaml"]
    for one, name in zip(found, ("small", "all"), strict=True):
        record = json.loads((recipes / one["folder"] / "record.json").read_text())
        assert (one["run"], one["folder"]) == (name, f"runs/{name}")
        assert (one["steps"], one["seconds"]) == (2, record["summary"]["seconds"])
        assert one["tokens_per_second"] == record["summary"]["tokens"] / record["summary"]["seconds"]
        assert one["peak_memory_bytes"] > 1e8
        lines = [json.loads(line) for line in (recipes / one["folder"] / "metrics.jsonl").read_text().splitlines()]
        assert one["eval_loss"] == lines[-1]["eval_loss"]
        assert one["metrics"]["accuracy"] == lines[-1]["eval_accuracy"] and "loss" not in one["metrics"]
    small, whole = found
    assert whole["trained_parameters"] == whole["parameters"]
    # r (in + out) of each of 7 linear layers, in 2 layers of the model
    assert small["trained_parameters"] == 2 * 2 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 64) * 3)
    assert small["parameters"] == whole["parameters"] + small["trained_parameters"]


@pytest.mark.slow
def test_finished_runs_are_only_compared(recipes, made, monkeypatch, capsys):
    monkeypatch.chdir(recipes)
    monkeypatch.setattr(compare, "_trained", None)
    assert main(["compare", "runs/small", "runs/all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == made[0]
    assert main(["compare", "runs/all", "runs/small"]) == 0
    said = capsys.readouterr().out
    rows = {line[:20].strip(): line[20:].split() for line in said.splitlines() if line.strip()}
    assert rows["trained parameters"] == ["31,392", "2,048"] and rows["steps"] == ["2", "2"]
    assert "accuracy" in rows and "tokens/s" in rows and "held-out loss" in rows
    assert "small: runs/small" in said


@pytest.mark.slow
def test_what_is_wrong_is_said_before_anything_is_trained(recipes, made, monkeypatch, capsys):
    monkeypatch.chdir(recipes)
    monkeypatch.setattr(compare, "_trained", None)
    (recipes / "half").mkdir()
    (recipes / "half" / "record.json").write_text('{"status": "interrupted by signal 15"}')
    for words, message in (
        (["small.yaml", "non.yaml"], "non.yaml"),
        (
            ["small.yaml", "half"],
            "half is not finished (interrupted by signal 15). Go on with it: tunesmith train half",
        ),
        (["small.yaml", "all.yaml", "train.output_dir=one"], "train.output_dir: one is that of two recipes"),
        (["runs/small", "train.max_steps=3"], "train.max_steps=3 changes recipes, and these are runs that are made"),
        (["small.yaml", "train.max_step=3"], "Did you mean 'max_steps'"),
    ):
        assert main(["compare", *words]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_that_fails_is_said(recipes, monkeypatch, capsys):
    monkeypatch.chdir(recipes)
    assert main(["compare", "small.yaml", "data.max_tokens=2"]) == 1
    assert "small.yaml ended with 1, as it says above" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"), [(("objective: dpo", "objective: sft"), "does not learn from"), (("/model", "/none"), "none")]
)
def test_a_later_recipe_is_refused_before_the_first_is_trained(recipes, monkeypatch, capsys, change, says):
    monkeypatch.chdir(recipes)
    monkeypatch.setattr(compare, "_trained", None)
    (recipes / "bad.yaml").write_text((recipes / "small.yaml").read_text().replace(*change))
    assert main(["compare", "small.yaml", "bad.yaml"]) == 1
    assert says in capsys.readouterr().err


def test_what_finished_is_shown_when_a_later_training_fails(recipes, monkeypatch, capsys):
    monkeypatch.chdir(recipes)
    numbers = {name: 2 for name in compare.PARTS} | {"run": "first", "folder": "runs/first", "metrics": {}}

    def trained(one, words):
        if one == "all.yaml":
            raise RunError("all.yaml ended with 1, as it says above")
        return recipes

    monkeypatch.setattr(compare, "_trained", trained)
    monkeypatch.setattr(compare, "numbers", lambda run: numbers)
    assert main(["compare", "small.yaml", "all.yaml"]) == 1
    said = capsys.readouterr().err
    assert "first: runs/first" in said and "all.yaml ended with 1, as it says above" in said


def test_what_a_run_lacks_is_left_open():
    found = [
        {name: None for name in compare.PARTS} | {"run": "a", "steps": 3, "metrics": {}},
        {name: 2 for name in compare.PARTS} | {"run": "b", "metrics": {"accuracy": 0.75}},
    ]
    rows = {name: texts for name, *texts in compare.lines(found)}
    assert rows["steps"] == ["3", "2"] and rows["held-out loss"] == ["-", "2.0000"]
    assert rows["accuracy"] == ["-", "0.75"] and rows["peak memory"] == ["-", "0.00 GB"]
