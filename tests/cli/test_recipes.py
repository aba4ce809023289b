"""`tunesmith recipes`: the shipped recipes, and a copy of one."""

import json

import pytest

from tunesmith.cli.main import main
from tunesmith.recipe_text import recipe_folder, recipe_names


def test_the_list_has_every_recipe_with_its_first_line(capsys):
    assert main(["recipes"]) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in rows] == recipe_names()
    for name, summary in rows:
        assert (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8").startswith(f"# {summary}\n")
        assert summary.endswith(".")


def test_a_pattern_and_json(capsys):
    assert main(["recipes", "sft", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == [name for name in recipe_names() if "sft" in name]


def test_a_local_file_of_that_name_is_not_taken_for_the_recipe(capsys, tmp_path, monkeypatch):
    (tmp_path / "quickstart").write_text("# mine\n")
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "quickstart"]) == 0
    assert "mine" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "written"), [("", "quickstart.yaml"), ("sub", "sub/quickstart.yaml"), ("x.yaml", "x.yaml")]
)
def test_a_copy_is_the_recipe(capsys, tmp_path, monkeypatch, where, written):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    assert main(["recipes", "copy", "quickstart", *([where] if where else [])]) == 0
    assert capsys.readouterr().out == f"wrote {written}\n"
    assert (tmp_path / written).read_bytes() == (recipe_folder() / "quickstart.yaml").read_bytes()


def test_a_copy_never_overwrites(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("mine")
    assert main(["recipes", "copy", "quickstart"]) == 1
    assert capsys.readouterr().err.startswith("error: quickstart.yaml exists. ")
    assert (tmp_path / "quickstart.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (
            ["copy", "quikstart"],
            1,
            "error: there is no shipped recipe 'quikstart'. Did you mean 'quickstart'?",
        ),
        (["quikstart"], 1, "error: there is no shipped recipe 'quikstart'. Did you mean 'quickstart'?"),
        (["copy"], 2, "error: say `recipes [PATTERN]` or `recipes copy NAME [DEST]` (it was `recipes copy`)"),
        (["copy", "quickstart", "a", "b"], 2, "error: say `recipes [PATTERN]` or `recipes copy NAME [DEST]` "),
        (["a", "b"], 2, "error: say `recipes [PATTERN]` or `recipes copy NAME [DEST]` "),
        (
            ["copy", "quickstart", "no/such/folder/x.yaml"],
            1,
            "error: No such file or directory: no/such/folder/x.yaml",
        ),
    ],
)
def test_what_is_wrong_is_one_line(capsys, words, code, line):
    assert main(["recipes", *words]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(line) and captured.err.count("\n") == 1
