"""What answers at once imports nothing heavy. Times differ between machines; imports do not."""

import json
import subprocess
import sys

import pytest

LIST = """
import json, sys
from tunesmith.cli.main import main
code = main(sys.argv[1:])
print("\\n" + json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
TORCH = {"torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "matplotlib"}
OPTIONS = {"pydantic", "numpy", "yaml", "rich", "jinja2"}


def modules_after(*words, code=0):
    """The top-level modules that a command has imported when it ends with this exit code."""
    done = subprocess.run([sys.executable, "-c", LIST, *words], capture_output=True, text=True, check=True)
    found, names = json.loads(done.stdout.splitlines()[-1])
    assert found == code, done.stderr
    assert "argparse" in names  # the list is one of modules
    return set(names)


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["train", "--help"], ["export", "--help"]])
def test_version_and_help_import_nothing_heavy(words):
    assert sorted(modules_after(*words) & (TORCH | OPTIONS)) == []


def test_a_wrong_command_imports_nothing_heavy():
    assert sorted(modules_after("trian", code=2) & (TORCH | OPTIONS)) == []


@pytest.mark.parametrize("words", [["options"], ["options", "--markdown"], ["options", "--schema"], ["recipes"]])
def test_options_and_recipes_do_not_import_torch(words):
    names = modules_after(*words)
    assert "pydantic" in names or words == ["recipes"]
    assert sorted(names & TORCH) == []


@pytest.mark.parametrize("verb", ["train", "preview"])
@pytest.mark.parametrize(
    "text",
    [
        "model: m\ndata: {train: [a}\n",
        "model: m\ndata: {train: rows.json}\nadapter: lorra\n",
        "model: m\ndata: {train: rows.json}\ntrain: {transformers: {lr: 1}}\n",
        "model: m\ndata: {train: ./rows-that-nobody-wrote.json}\n",
    ],
)
def test_a_broken_recipe_fails_before_torch_is_imported(tmp_path, verb, text):
    (tmp_path / "recipe.yaml").write_text(text)
    assert sorted(modules_after(verb, str(tmp_path / "recipe.yaml"), code=1) & TORCH) == []
