"""The command line: verbs, exit codes, and one clear line for whatever goes wrong."""

import io
import json
import os
import re
import subprocess
import sys

import pytest

import tunesmith
from fixtures_models import save_model
from tunesmith.cli.main import VERBS, main, new_folder

COMMAND = [sys.executable, "-m", "tunesmith"]
USER_EXPORT = '''
from tunesmith.seams import Export
from tunesmith.types import Report

class Mine(Export):
    """An export of a test."""
    difference: float = 0.0
    """What it reports."""

    def write(self, run, out):
        """A report."""
        return Report(out, True, 3, 1 / self.difference, 10.0)
'''


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny model, rows and a recipe of two steps."""
    folder = tmp_path_factory.mktemp("small")
    save_model(folder / "model")
    rows = [{"instruction": f"Say {word}.", "output": f"{word}!"} for word in ("one", "two", "three", "four")]
    rows.append({"instruction": "Say nothing.", "output": ""})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(
        f"model: {folder}/model\ndata: {{train: {folder}/rows.jsonl, max_tokens: 64, cache_dir: {folder}/cache}}\n"
        "train: {max_steps: 2}\n"
    )
    return folder


def failed(capsys, *words, code=1):
    """The one line that a command fails with."""
    assert main(list(words)) == code
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert re.fullmatch("error: .+\n", captured.err), captured.err
    return captured.err.removeprefix("error: ").rstrip("\n")


# help


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tunesmith {tunesmith.__version__}\n"
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert [verb for verb in VERBS if not re.search(rf"^  {verb} +[A-Z].*\.$", told, re.MULTILINE)] == []


def test_no_command_is_wrong_and_gets_the_help(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("usage: tunesmith ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_help(capsys, verb):
    assert main([verb, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"usage: tunesmith {verb}") and captured.err == ""


# a wrong command line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "there is no command 'trian'. Did you mean 'train'? See: tunesmith --help"),
        (["r.yaml"], "there is no command 'r.yaml'. Did you mean 'tunesmith train r.yaml'?"),
        (["--verion"], "there is no option --verion. Did you mean '--version'"),
        (["train"], "the following arguments are required: RECIPE_OR_RUN. See: tunesmith train --help"),
        (["preview", "r", "--row", "3"], "there is no option --row. Did you mean '--rows'?"),
        (["preview", "r", "--rows=0"], "argument --rows: must be a whole number above 0 (it was '0'). See: "),
        (
            ["preview", "r", "--html", "f", "--json"],
            "argument --json: not allowed with argument --html. See: ",
        ),
        (["options", "train", "eval"], "'eval' is one word too many. See: tunesmith options --help"),
        (
            ["train", "r", "--train.max_steps=3"],
            "a recipe's option is said without dashes: train.max_steps=3. See: tunesmith train --help",
        ),
        (
            ["chat", "m", "--temperature", "hot"],
            "argument --temperature: must be a number from 0 to 100 (it was 'hot'). See: ",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(capsys, words, line):
    assert failed(capsys, *words, code=2).startswith(line)


def test_options_may_stand_before_and_after_words(capsys, small):
    recipe = str(small / "recipe.yaml")
    assert main(["preview", "--rows", "1", recipe, "--json", "data.max_tokens=60"]) == 0
    first = capsys.readouterr().out
    assert main(["preview", recipe, "data.max_tokens=60", "--json", "--rows=1"]) == 0
    assert capsys.readouterr().out == first


# what goes wrong in a command


def test_an_error_is_a_line_for_each_problem(capsys, small):
    words = ["preview", str(small / "recipe.yaml"), "train.max_steps=0", "adapter.rank=3"]
    assert main(words) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[:2] for line in lines] == [
        ["error", " adapter.rank"],
        ["error", " train.max_steps"],
    ]


def test_verbose_shows_the_traceback(capsys, small):
    for words in (["-v", "preview", "nowhere.yaml"], ["preview", "nowhere.yaml", "--verbose"]):
        assert main(words) == 1
        told = capsys.readouterr().err
        assert "Traceback (most recent call last)" in told and "recipe_file" in told
        assert told.splitlines()[-1].startswith("error: there is no file or shipped recipe 'nowhere.yaml'")


def test_a_bug_is_one_line_that_names_it(capsys, tmp_path):
    (tmp_path / "mine.py").write_text(USER_EXPORT)
    line = failed(capsys, "export", "run", "out", f"type={tmp_path}/mine.py")
    assert line == "ZeroDivisionError: float division by zero (unexpected; -v shows the traceback)"


def test_what_the_system_refuses_is_told_without_a_number(capsys, small):
    words = ["preview", str(small / "recipe.yaml"), "--html", str(small / "none" / "page.html")]
    assert failed(capsys, *words) == f"No such file or directory: {small}/none/page.html"


def test_ctrl_c_is_exit_code_130(capsys, tmp_path):
    (tmp_path / "stop.py").write_text("raise KeyboardInterrupt\n")
    assert main(["preview", "quickstart", f"objective={tmp_path}/stop.py"]) == 130
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "stopped\n"


@pytest.mark.parametrize("words", [["options"], ["recipes"]])  # more than a buffer holds, and less
def test_a_closed_pipe_is_quiet(words):
    read, write = os.pipe()
    os.close(read)
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run([*COMMAND, *words], stdout=write, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


# verbs


def test_preview_prints_only_json(capfd, small):
    assert main(["preview", str(small / "recipe.yaml"), "--json"]) == 0
    *samples, last = map(json.loads, capfd.readouterr().out.splitlines())
    assert [sample["dropped"] for sample in samples] == [None] * 4 + ["empty answer"]
    assert last["ledger"]["rows_read"] == 5


def test_preview_shows_and_counts_as_many_rows_as_asked(capsys, small):
    assert main(["preview", str(small / "recipe.yaml"), "--rows", "2"]) == 0
    assert "⟦two!<|im_end|>⟧" in (told := capsys.readouterr().out) and "three!" not in told
    assert "2 rows read" in told
    assert main(["preview", str(small / "recipe.yaml"), "--rows", "2", "--all"]) == 0
    assert "three!" not in (told := capsys.readouterr().out) and "5 rows read" in told


def test_preview_writes_a_page(capsys, small, tmp_path):
    assert main(["preview", str(small / "recipe.yaml"), "--html", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}/page.html\n"
    assert "Preview of recipe" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_train_prints_its_summary_as_json_alone_and_goes_on_with_a_run(capfd, small, tmp_path):
    run = tmp_path / "run"
    assert main(["train", str(small / "recipe.yaml"), "--json", f"train.output_dir={run}"]) == 0
    told = capfd.readouterr()
    summary = json.loads(told.out)
    assert summary["steps"] == 2 and summary["folder"] == str(run)
    assert (run / "final").is_dir() and "run folder" in told.err
    assert main(["train", str(run), "--json"]) == 0
    told = capfd.readouterr()
    assert json.loads(told.out) == summary and "is finished" in told.err


def test_a_run_that_goes_on_keeps_its_recipe(capsys, tmp_path):
    kept = f"{tmp_path} is a run, and keeps its recipe when it goes on. For a new run: tunesmith train "
    for train, more in (("{}", ""), ("{output_dir: runs/x}", " train.output_dir=NEW")):
        (tmp_path / "recipe.yaml").write_text(f"model: m\ndata: {{train: rows.jsonl}}\ntrain: {train}\n")
        line = failed(capsys, "train", str(tmp_path), "train.seed=3", "name=it's")
        assert line == f"{kept}{tmp_path}/recipe.yaml train.seed=3 'name=it'\"'\"'s'{more}"


@pytest.mark.parametrize("type_", ["gguf", "merged"])
def test_a_forgotten_folder_is_not_made_of_an_option(capsys, tmp_path, monkeypatch, type_):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "run", f"type={type_}"]) == 2
    assert f"argument OUT: is missing before the option 'type={type_}': name the folder" in capsys.readouterr().err
    assert [str(new_folder(text)) for text in ("./type=gguf", "/a/b=c")] == ["type=gguf", "/a/b=c"]


@pytest.mark.parametrize(("difference", "code"), [(1.0, 0), (0.01, 1)])
def test_an_export_that_differs_fails(capsys, tmp_path, difference, code):
    (tmp_path / "mine.py").write_text(USER_EXPORT)  # reports 1 / difference, and allows 10
    words = ["export", "run", "out", f"type={tmp_path}/mine.py", f"difference={difference}"]
    assert main(words) == code
    told = capsys.readouterr().out
    assert "3 prompts" in told and f"{1 / difference:.3g}" in told
    assert main([*words, "--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is (code == 0) and report["path"] == "out"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("type=mergd", "export: there is no export 'mergd'. Did you mean 'merged'?"),
        ("dtipe=float32", "dtipe: no such option. Did you mean 'dtype'?"),
        ("merged", "'merged' is not `section.option=value`. Did you mean 'type=merged'?"),
    ],
)
def test_a_wrong_export_is_one_line(capsys, word, line):
    assert failed(capsys, "export", "run", "out", word) == line


def test_chat_answers_a_pipe(capfd, monkeypatch, small):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert main(["chat", str(small / "model"), "--max-new-tokens", "4", "--system", "Be short."]) == 0
    assert capfd.readouterr().out.strip()


def test_doctor_tells_what_works(capsys):
    assert main(["doctor"]) == 0
    assert re.search(r"^every run +torch +\d", capsys.readouterr().out, re.MULTILINE)
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["tunesmith"] == tunesmith.__version__
