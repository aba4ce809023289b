"""`tunesmith bench`: a table for people, one JSON object for programs."""

import json

import pytest

from fixtures_models import save_model
from tunesmith import bench_against
from tunesmith.cli.main import main
from tunesmith.engine import peaks


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(peaks, "SIZES", {"cpu": (64,)})


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    save_model(folder / "model")
    rows = [{"instruction": f"Say {i}.", "output": f"{i}!"} for i in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "recipe.yaml").write_text(
        f"model: {folder}/model\ndata: {{train: {folder}/rows.jsonl, max_tokens: 64, cache_dir: {folder}/cache}}\n"
    )
    return str(folder / "recipe.yaml")


def test_json_alone_is_on_stdout(recipe, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", recipe, "train.row_tokens=64", "--steps", "2", "--warmup", "1", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert len(found["steps"]) == 2 and found["recipe"]["train"]["row_tokens"] == 64
    assert "measuring: 1 steps to warm up, then 2" in captured.err
    assert list(tmp_path.iterdir()) == []  # no run folder


def test_a_table(recipe, capsys):
    assert main(["bench", recipe, "--steps", "1", "--warmup", "1"]) == 0
    said = capsys.readouterr().out
    assert "real tokens/s" in said and "MFU" in said


def test_against_is_handed_what_was_said(recipe, capsys, monkeypatch):
    given = []
    monkeypatch.setattr(bench_against, "compare", lambda *arguments: given.append(arguments) or {"rows": 3})
    words = ["--against", "hf", "--steps", "4", "--rounds", "5", "--peer-batch-size", "6", "--json"]
    assert main(["bench", recipe, *words]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 3}
    (arguments,) = given
    assert arguments[2] == bench_against.Length(4, 2, 5)
    assert (arguments[1].names, arguments[1].batch_size) == (("hf",), 6)


@pytest.mark.parametrize("words", [["--steps", "x"], ["--warmup", "0"], ["--against", "nobody"]])
def test_wrong_words(recipe, capsys, words):
    assert main(["bench", recipe, *words]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
