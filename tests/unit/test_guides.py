"""The README and the guide do as they say: code runs, recipes load, rows read, commands are what they seem.

A comment before a block says what it is: `test: run` (Python or commands, run in order, page by page), `test: file
NAME` (written for other blocks), `test: row FORMAT` (a row of that format). Blocks run in a folder where the model
that the pages name is a tiny one, beside `answers.jsonl`, `questions.jsonl` and the README's `my-recipe.yaml`.
"""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from fixtures_models import save_model
from tunesmith import schema
from tunesmith.cli import main as cli
from tunesmith.component import all_of, find
from tunesmith.evaluate import Evaluation, read
from tunesmith.explain import choose
from tunesmith.generate.asked import Chatting
from tunesmith.launching import Launcher
from tunesmith.prediction.options import Prediction
from tunesmith.recipe import Recipe
from tunesmith.recipe_text import read_words, recipe_file, recipe_names
from tunesmith.seams import Adapter, Export, Format, Optimizer, Task
from tunesmith.synthesis.options import Synthesis

ROOT = Path(__file__).parents[2]
PAGES = {page.name: page for page in [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]}
BLOCK = re.compile(r"(?:<!-- test: ([^\n]+?) -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"  # the one that the pages name
SMALLEST = {"model": MODEL, "data": {"train": "answers.jsonl", "eval": 0.1}}  # what a recipe of some sections lacks
RUN = {  # made before the page begins
    "first-run.md": "runs/quickstart",
    "after-training.md": "runs/first",
    "tricks.md": "runs/first",
}


def blocks(*kinds):
    """Every block of the pages in some languages: page, mark, text."""
    found = [(name, *one.groups()) for name, page in PAGES.items() for one in BLOCK.finditer(page.read_text("utf-8"))]
    return [(page, mark or "", text) for page, mark, kind, text in found if kind in kinds]


def commands(text):
    """The tunesmith commands of a block, as words; what a shell does with `|` and `>` is left out."""
    lines = [shlex.split(line.partition(" | ")[2] or line.partition(" > ")[0]) for line in text.splitlines() if line]
    return [words[1:] for words in lines if words[0] == "tunesmith"]


def run_line(line):
    """Run a line of commands, and write what it prints where the line says."""
    (words,), (_, _, out) = commands(line), line.partition(" > ")
    with open(out or os.devnull, "w") as file, contextlib.redirect_stdout(file):
        assert cli.main(words) == 0, line


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder that every page begins in, and a finished run beside it."""
    folder = tmp_path_factory.mktemp("guides")
    save_model(folder / "start" / MODEL)
    answers = [{"instruction": f"What is {i} and 2?", "output": f"It is {i + 2}."} for i in range(30)]
    questions = [{"question": row["instruction"], "answers": [row["output"], "No idea."]} for row in answers]
    for name, rows in (("answers", answers), ("questions", questions)):
        (folder / "start" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (recipe,) = (text for page, _, text in blocks("yaml") if page == "README.md")
    (folder / "start" / "my-recipe.yaml").write_text(recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "start")
        words = ["train.max_steps=2", "eval={}", "data.eval=3", f"train.output_dir={folder / 'run'}"]
        assert cli.main(["train", "my-recipe.yaml", *words]) == 0
    return folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(p == page for p, mark, _ in blocks("python", "sh") if mark)]
)
def test_the_blocks_of_a_page_run(prepared, tmp_path, monkeypatch, page):
    shutil.copytree(prepared / "start", tmp_path, dirs_exist_ok=True)
    if page in RUN:
        shutil.copytree(prepared / "run", tmp_path / RUN[page])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\n"))
    names = {"__name__": page}
    write_files()
    for text in (text for name, mark, text in blocks("python", "sh") if name == page and mark == "run"):
        if text.startswith("tunesmith"):
            for line in text.splitlines():
                run_line(line)
        else:
            exec(compile(text, page, "exec"), names)


def write_files():
    """Write the blocks that are files."""
    for _, mark, text in blocks("python"):
        if mark.startswith("file "):
            Path(mark.removeprefix("file ")).write_text(text)


def test_no_block_is_left_out():
    assert [text for _, mark, text in blocks("python") if not (mark == "run" or mark.startswith("file "))] == []
    fences = [line for page in PAGES.values() for line in page.read_text("utf-8").splitlines() if line[:3] == "```"]
    languages = ("json", "python", "sh", "text", "yaml")
    assert {line for line in fences if line != "```"} == {f"```{language}" for language in languages}
    assert len(fences) == 2 * len(blocks(*languages))


@pytest.mark.parametrize(("file", "shipped"), [("dft.py", "dft"), ("my_loss.py", "focal")])
def test_the_losses_that_are_shown_are_the_shipped_ones(file, shipped):
    (text,) = (text for _, mark, text in blocks("python") if mark == f"file {file}")
    assert text == (ROOT / "src/tunesmith/objectives" / f"{shipped}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "text"), [(page, text) for page, _, text in blocks("yaml")])
def test_every_recipe_loads(tmp_path, monkeypatch, page, text):
    monkeypatch.chdir(tmp_path)
    write_files()
    Recipe(**(SMALLEST | yaml.safe_load(text)))


@pytest.mark.parametrize(("mark", "text"), [(mark, text) for _, mark, text in blocks("json")])
def test_every_row_reads(mark, text):
    sample = find(Format, mark.removeprefix("row "))().read(json.loads(text))
    assert any(turn.weight for turn in sample.branches[0])


@pytest.mark.parametrize("words", [words for _, _, text in blocks("sh") for words in commands(text)], ids=" ".join)
def test_every_command_is_one(tmp_path, monkeypatch, words):
    """Its verb, its options, its shipped recipe and its `a.b=c` words are there."""
    monkeypatch.chdir(tmp_path)
    write_files()
    verb, *rest = words
    parser = cli.Parser(verb)
    importlib.import_module(f"tunesmith.cli.{verb}").add(parser)
    arguments = parser.read(rest)
    if verb in ("train", "preview"):
        given = arguments.recipe
        assert given in recipe_names() or given.endswith(".yaml") or given.startswith("runs/")
        tree = yaml.safe_load(recipe_file(given).read_text()) if given in recipe_names() else deepcopy(SMALLEST)
        launched = [word for word in arguments.words if word.startswith("launcher")]
        Recipe(**read_words(tree, [word for word in arguments.words if word not in launched]))
        if launched:
            choose(Launcher, read_words({}, launched)["launcher"])
    elif verb == "recipes" and arguments.words:
        assert arguments.words[1] in recipe_names()
    elif verb == "export":
        choose(Export, read_words({}, arguments.words))
    elif verb == "options":
        verbs = {"synthesize": Synthesis, "evaluate": Evaluation, "predict": Prediction, "chat": Chatting}
        groups = schema.groups(Recipe, export=Export, **verbs, task=Task, launcher=Launcher)
        schema.choose(groups, arguments.section)
    elif verb == "evaluate":
        read(arguments.task.split(","), arguments.words)
    elif verb == "synthesize":
        Synthesis(**read_words({}, arguments.words))


def test_every_page_is_reached_from_the_readme():
    text = PAGES["README.md"].read_text("utf-8")
    assert [name for name in PAGES if name != "README.md" and f"docs/guide/{name}" not in text] == []
    index = (ROOT / "docs" / "decisions" / "README.md").read_text("utf-8")
    assert [page.name for page in (ROOT / "docs" / "decisions").glob("0*.md") if page.name not in index] == []


@pytest.mark.parametrize(
    ("page", "seam", "said"),
    [("adapters.md", Adapter, "learning_rate"), ("optimizers.md", Optimizer, "learning_rate_factor")],
    ids=["adapters", "optimizers"],
)
def test_learning_rates_are_those_of_the_tables(page, seam, said):
    rows = [line.split(" | ") for line in PAGES[page].read_text("utf-8").splitlines() if line.startswith("| ")]
    table = {row[0].strip("|` "): row[2] for row in rows if len(row) == 4}
    rates = {name: getattr(one, said) for name, one in all_of(seam).items()}
    assert {name: float(table[name]) for name in rates} == rates
