"""`tunesmith options`: what is printed for a section, a component and one option."""

import json

import pytest

from tunesmith.cli.main import main
from tunesmith.recipe_train import Train


def printed(capsys, *words):
    assert main(["options", *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_one_option_is_one_line(capsys):
    line = "  train.max_steps  Optimizer steps. (integer > 0; default null)\n"
    assert printed(capsys, "train.max_steps") == printed(capsys, "max_steps") == line


def test_a_section_is_its_options(capsys):
    paths = [line.split()[0] for line in printed(capsys, "train").splitlines()[1:]]
    assert paths == [f"train.{name}" for name in Train.model_fields]


def test_a_component_is_found_by_its_name(capsys):
    assert "adapter[lora].lora_alpha" in printed(capsys, "lora")
    assert printed(capsys, "sft").startswith("objective[sft]: ")


def test_the_schema_is_json_alone(capsys):
    assert json.loads(printed(capsys, "--schema"))["title"] == "Recipe"


def test_markdown_of_a_section(capsys):
    page = printed(capsys, "train", "--markdown")
    assert "## train" in page and "| `train.max_steps` |" in page and "model.path" not in page


@pytest.mark.parametrize(("word", "hint"), [("trian", "'train'"), ("adapter.rr", "'adapter.r'")])
def test_an_unknown_word_gets_near_names(capsys, word, hint):
    assert main(["options", word]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: there is no section or option '{word}'. Did you mean ")
    assert hint in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["evaluate", "predict", "chat"])
def test_the_help_of_a_verb_names_the_section_of_its_options(capsys, verb):
    assert main([verb, "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"see options {verb}" in told or f"options task, options {verb}" in told
    assert "http://HOST/v1" in told
    assert printed(capsys, verb).startswith(f"{verb}: ") and "typed by these names alone" in printed(capsys, verb)
