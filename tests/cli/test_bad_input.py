"""Each thing a newcomer gets wrong is one clear line, an exit code, and nothing half-written."""

import json

import pytest
import yaml

from fixtures_models import save_model
from tunesmith.cli.main import main

GOOD = {"instruction": "Say hi.", "output": "Hi!"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(tmp_path, model, capsys, monkeypatch):
    """Trains on a file of the given text through the command line: its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def call(text, *words, name="rows.jsonl", recipe=None):
        if text is not None:
            (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        options = recipe or {
            "model": str(model),
            "data": {"train": name, "max_tokens": 64, "cache_dir": str(tmp_path / "cache")},
            "train": {"max_steps": 1, "output_dir": "out"},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(options))
        code = main(["train", "recipe.yaml", *words])
        return code, capsys.readouterr().err

    return call


def rows(*found):
    return "\n".join(json.dumps(row) for row in found)


def conversation(*roles):
    return {"messages": [{"role": role, "content": f"text of the {role}"} for role in roles]}


CASES = {
    "missing file": (None, (), ["rows.jsonl"]),
    "empty file": ("", (), ["rows.jsonl", "empty"]),
    "bad JSON at line 2": (rows(GOOD) + '\n{"instruction": "Say', (), ["rows.jsonl:2"]),
    "a row without a column": (
        rows({"instruction": "Say hi.", "ouput": "Hi!"}, GOOD),
        ("data.train.0.format=alpaca",),
        ["rows.jsonl:1", "'output' is missing", "ouput"],
    ),
    "no format fits": (rows({"question": "a", "remark": "b"}), (), ["rows.jsonl:1", "question", "columns:"]),
    "unknown key": (rows(GOOD), ("train.max_stpes=3",), ["train.max_stpes", "max_steps"]),
    "unknown section": (rows(GOOD), ("trian.max_steps=3",), ["trian", "train"]),
    "wrong type": (rows(GOOD), ("train.max_steps=many",), ["train.max_steps", "'many'"]),
    "out of bounds": (rows(GOOD), ("adapter.r=0",), ["adapter.r", "greater than 0", "it was 0"]),
    "no assistant turn": (rows(conversation("system", "user")), (), ["no trained turn", "rows.jsonl:1"]),
    "all samples too long": (
        rows({"instruction": "Say hi.", "output": "Hi! " * 200}),
        (),
        ["longer than data.max_tokens", "rows.jsonl:1"],
    ),
    "non-existing model": (rows(GOOD), ("model.path=./no-such-model",), ["./no-such-model"]),
    "a model that is on no hub we can reach": (rows(GOOD), ("model.path=nobody/no-such-model",), ["no-such-model"]),
    "a transformers option that is ours": (
        rows(GOOD),
        ("train.transformers.learning_rate=1",),
        ["learning_rate", "optimizer.learning_rate"],
    ),
    "a transformers option that is none": (
        rows(GOOD),
        ("train.transformers.dataloader_num_wokers=1",),
        ["dataloader_num_wokers", "dataloader_num_workers"],
    ),
    "not a word": (rows(GOOD), ("max_steps",), ["max_steps"]),
    "not UTF-8": (b'{"instruction": "\xff\xfe", "output": "b"}', (), ["rows.jsonl", "UTF-8"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(run, tmp_path, case):
    text, words, says = CASES[case]
    code, said = run(text, *words)
    assert code in (1, 2)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    for part in says:
        assert part in errors[0]
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


def test_one_long_sample_is_dropped_and_counted(run, tmp_path):
    code, said = run(rows(GOOD, {"instruction": "Say hi.", "output": "Hi! " * 200}))
    assert code == 0
    assert "1 dropped: longer than data.max_tokens (rows.jsonl:2; " in said
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())["train"]
    assert ledger["rows_read"] == 2 == ledger["rows_kept"] + 1
    assert ledger["dropped"] == {"longer than data.max_tokens": {"count": 1, "first": ["rows.jsonl:2"]}}


def test_a_full_output_folder_is_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, said = run(rows(GOOD))
    assert code == 1
    assert "train.output_dir: out is not empty" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_run_that_is_there_can_be_gone_on_with(run, tmp_path):
    assert run(rows(GOOD))[0] == 0
    code, said = run(rows(GOOD))
    assert code == 1
    assert "go on with that run: tunesmith train out" in said


def test_two_problems_are_two_lines(run):
    code, said = run(rows(GOOD), "train.max_stpes=3", "adapter.r=0")
    assert code == 1
    assert sum(line.startswith("error: ") for line in said.splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("model: [", "recipe.yaml:1"),
        ("just words", "must be a mapping"),
        ("data: {train: rows.jsonl}", "model: is required and missing"),
        ("model: builtin:tiny", "data: is required and missing"),
    ],
)
def test_a_broken_recipe_file(tmp_path, capsys, monkeypatch, content, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(content)
    assert main(["train", "recipe.yaml"]) == 1
    assert says in capsys.readouterr().err


def test_a_recipe_that_is_none(capsys):
    assert main(["train", "quikstart"]) == 1
    assert "Did you mean 'quickstart'?" in capsys.readouterr().err
