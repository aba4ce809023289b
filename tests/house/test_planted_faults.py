"""Each check is seen to fail: a small clean package passes them all, and one fault in it is reported."""

import subprocess
import sys
from pathlib import Path

import pytest

from house import docs, errors, layers, private, sizes, text

ROOT = Path(__file__).parents[2]

CLEAN = {
    "src/tunesmith/__init__.py": '"""A package."""\n__version__ = "1.2.0"\n',
    "src/tunesmith/errors.py": """
'''Errors.'''
class TunesmithError(Exception):
    '''Base.'''
class RecipeError(TunesmithError, ValueError):
    '''A bad recipe.'''
""",
    "src/tunesmith/recipe.py": """
'''Recipes.'''
from typing import TYPE_CHECKING
from tunesmith.errors import RecipeError
if TYPE_CHECKING:
    import torch
    from tunesmith.run import run
def load(path: str) -> "torch.Tensor":
    '''Load.'''
    import torch
    if not path:
        raise RecipeError(f"no such recipe: {path!r}")
    return torch.zeros(1)
""",
    "src/tunesmith/run.py": """
'''A run.'''
import torch
from tunesmith import __version__
from tunesmith.builtin import words
from tunesmith.engine.trainer import Trainer
from tunesmith.recipe import load
class Run:
    '''A run.'''
    def __init__(self):
        self._step = 0
    def step(self):
        '''One more.'''
        self._step += self._size()
    def _size(self):
        return 1
def run():
    '''Run.'''
""",
    "src/tunesmith/engine/__init__.py": "'''The engine.'''",
    "src/tunesmith/engine/trainer.py": """
'''The trainer.'''
import transformers
class Trainer(transformers.Trainer):
    '''Trains.'''
    def log(self):
        '''Log.'''
        self._inner_training_loop()
""",
    "src/tunesmith/data/__init__.py": "'''Data.'''",
    "src/tunesmith/data/pack.py": "'''Rows of tokens.'''",
    "src/tunesmith/data/source.py": "'''Rows.'''",
    "src/tunesmith/builtin/__init__.py": "'''Built in.'''",
    "src/tunesmith/builtin/words.py": "'''Words.'''",
    "src/tunesmith/cli/__init__.py": "'''Verbs.'''",
    "src/tunesmith/cli/train.py": """
'''Train.'''
def go():
    '''Go.'''
    from tunesmith.run import run
    run()
    print("done")
""",
    "CHANGELOG.md": "# Changes\n\n## [1.2.0] - unreleased\n",
    "README.md": "[guide](docs/guide.md#top) [web](https://example.org/nothing.md) `[code](gone.md)`\n",
    "docs/guide.md": '[back](../README.md) <img src="../README.md">\n',
}

RUN, RECIPE, SOURCE = "src/tunesmith/run.py", "src/tunesmith/recipe.py", "src/tunesmith/data/source.py"
PACK = "src/tunesmith/data/pack.py"
WORDS, VERB, ERRORS = (
    "src/tunesmith/builtin/words.py",
    "src/tunesmith/cli/train.py",
    "src/tunesmith/errors.py",
)

# the check, the file, what is added to its end, what the check must say
FAULTS = [
    (layers, PACK, "from tunesmith.engine import trainer", "data.pack imports engine.trainer"),
    (layers, PACK, "def f():\n    from ..engine import trainer", "data.pack imports engine.trainer"),
    (layers, PACK, "import importlib\nm = importlib.import_module('tunesmith.run')", "data.pack imports run"),
    (layers, PACK, "from tunesmith import run", "data.pack imports run, which is in a higher layer"),
    (layers, SOURCE, "def f():\n    from tunesmith import train", "imports train of the package itself"),
    (layers, WORDS, "import tunesmith.errors", "builtin.words imports errors"),
    (layers, "src/tunesmith/extra.py", "'''New.'''", "extra is in no layer"),
    (layers, RECIPE, "import transformers", "recipe.py:13: imports transformers at module level"),
    (layers, RECIPE, "try:\n    from torch import nn\nfinally:\n    pass", "imports torch at module level"),
    (layers, SOURCE, "class A:\n    import peft.tuners", "imports peft at module level"),
    (layers, VERB, "import tunesmith.run", "imports run > torch at module level"),
    (layers, "src/tunesmith/data/__init__.py", "import datasets", "imports data > datasets at module level"),
    (sizes, "src/tunesmith/run.py", "#\n" * 400, "and at most 400 are allowed"),
    (sizes, "tests/test_long.py", "#\n" * 401, "tests/test_long.py: 401 lines"),
    (sizes, RUN, "def long():\n" + "    x = 1\n" * 60, "long has 61 lines"),
    (sizes, VERB, "#\n" * 40, "cli/train.py: 46 lines, and at most 40"),
    (docs, "src/tunesmith/run_more.py", "x = 1", "run_more.py: the module has no docstring"),
    (docs, RUN, "class Other:\n    pass", "Other has no docstring"),
    (docs, RUN, "def other():\n    pass", "other has no docstring"),
    (docs, RUN, "class Other:\n    '''O.'''\n    def more(self):\n        pass", "Other.more has no"),
    (docs, "README.md", "[gone](docs/gone.md)", "README.md: there is no docs/gone.md"),
    (docs, "docs/guide.md", "![gone](gone.png)", "docs/guide.md: there is no gone.png"),
    (docs, "docs/guide.md", "<img src='gone.svg'>", "docs/guide.md: there is no gone.svg"),
    (errors, RECIPE, "def f():\n    raise RecipeError('bad')", "names no value: 'bad'"),
    (errors, RECIPE, "def f():\n    raise RecipeError(f'bad')", "names no value"),
    (errors, RECIPE, "def f():\n    raise RecipeError('a' + 'b')", "names no value"),
    (errors, RECIPE, "def f():\n    raise RecipeError", "names no value"),
    (errors, ERRORS, "class New(RecipeError):\n    x = 1\ndef f():\n    raise New('bad')", "New names"),
    (errors, RECIPE, "try:\n    x = 1\nexcept:\n    pass", "bare except"),
    (errors, RECIPE, "def f():\n    print(1)", "print outside the command line"),
    (private, RUN, "def f(trainer):\n    trainer._inner_training_loop()", "_inner_training_loop is private"),
    (private, RUN, "class S(Run):\n    def f(self):\n        self._save()", "self._save is private"),
    (private, RUN, "from transformers.trainer import _is_peft_model", "_is_peft_model is private"),
    (private, RUN, "import torch._dynamo", "torch._dynamo is private"),
    (private, RUN, "from torch._dynamo import config", "_dynamo is private"),
    (private, RUN, "def f(x):\n    return getattr(x, '_hooks')", "_hooks is private"),
    (text, "README.md", "see /" + "work/main/x", "README.md:2: a path of one machine"),
    (text, "docs/guide.md", "file:" + "///opt/x", "a path of one machine"),
    (text, "docs/guide.md", "/home/" + "someone/x", "a path of one machine"),
    (text, "docs/guide.md", "../sh" + "ared/design", "a folder outside the repository"),
    (text, "requirements.txt", "--index" + "-url https://example.org", "a registry's host"),
    (text, "requirements.txt", "https://py" + "pi.org/simple", "a registry's host"),
    (text, "settings.yaml", "token: hf_" + "a" * 34, "a secret"),
    (text, "settings.yaml", "-----BEGIN " + "PRIVATE KEY-----", "a secret"),
    (text, "model.bin", "\0" * (10 * 1024 * 1024 + 1), "model.bin: 10,485,761 bytes"),
]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    for name, content in CLEAN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content.strip() + "\n")
    return tmp_path


@pytest.mark.parametrize("checker", [layers, sizes, docs, errors, private, text], ids=lambda it: it.__name__)
def test_the_clean_package_passes(root, checker):
    assert checker.check(root) == []


@pytest.mark.parametrize(("checker", "file", "fault", "said"), FAULTS)
def test_the_fault_is_reported_and_nothing_else(root, checker, file, fault, said):
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    with (root / file).open("a") as end:
        end.write(fault)
    found = checker.check(root)
    assert len(found) == 1 and said in found[0], found


def test_a_cycle_through_a_function_is_reported(root):
    (root / "src/tunesmith/schema.py").write_text("'''S.'''\ndef f():\n    from tunesmith import defaults\n")
    (root / "src/tunesmith/defaults.py").write_text("'''D.'''\nfrom tunesmith.schema import f\n")
    assert layers.check(root) == ["src/tunesmith/defaults.py: import cycle of defaults, schema"]


def test_a_change_log_behind_the_version_is_reported(root):
    (root / "src/tunesmith/__init__.py").write_text('"""A package."""\n__version__ = "1.3.0"\n')
    said = "CHANGELOG.md: the package is 1.3.0, and the newest version described is 1.2.0"
    assert docs.check(root) == [said]


def test_an_allowed_message_is_allowed_and_an_old_allowance_is_reported(root):
    with (root / RECIPE).open("a") as end:
        end.write("def f():\n    raise RecipeError('nothing to do')\n")
    assert errors.check(root, {(RECIPE, "nothing to"): "there is no value"}) == []
    stale = errors.check(root, {(RECIPE, "nothing to"): "there is no value", (RUN, "gone"): "was once"})
    assert stale == [f"{RUN}: no error begins with 'gone': drop it from ALLOWED"]


def test_only_what_git_would_commit_is_read(root):
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    (root / ".gitignore").write_text("ignored/\n")
    (root / "ignored").mkdir()
    for name in ("ignored/a.txt", "b.txt"):
        (root / name).write_text("/" + "root/x\n")
    found = text.check(root)
    assert len(found) == 1 and found[0].startswith("b.txt:1: a path of one machine")


class Upstream:
    def kept(self, a, b): ...
    def changed(self, a): ...
    def new(self): ...


class Ours(Upstream):
    def kept(self, a, b): ...
    def changed(self, a, b): ...
    def new(self): ...
    def dropped(self): ...


def test_overrides_are_compared_with_upstream():
    assert private.check_overrides(Ours, Upstream, {"kept": "", "changed": "", "dropped": "", "gone": ""}) == [
        "new overrides Upstream.new and is not listed",
        "changed takes ['self', 'a', 'b'], and upstream's takes ['self', 'a']",
        "dropped is listed and Upstream does not have it any more",
        "gone is listed and Ours does not define it",
    ]


GOOD = '''"""A module."""


def double(value: int) -> int:
    """Twice the value."""
    return 2 * value
'''

BRANCHES = "".join(f"    if value == {number}:\n        return {number}\n" for number in range(13))
STYLE = {
    "C901": f"def branch(value: int) -> int:\n    '''Many ways.'''\n{BRANCHES}    return 0\n",
    "ANN001": "def double(value) -> int:\n    '''Twice.'''\n    return 2 * value\n",
    "ANN201": "def double(value: int):\n    '''Twice.'''\n    return 2 * value\n",
    "D103": "def double(value: int) -> int:\n    return 2 * value\n",
    "E722": "try:\n    VALUE = 1\nexcept:\n    VALUE = 2\n",
    "E501": f"VALUE = '{'a' * 200}'\n",
    "F401": "import os\n",
    "T201": "print(1)\n",
    "S301": "import pickle\n\nVALUE = pickle.loads(b'')\n",
}


def ruff(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ruff", *words, "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    return subprocess.run(command, capture_output=True, text=True)


def test_ruff_passes_a_good_file_and_reports_each_fault(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    assert ruff("check", str(tmp_path)).returncode == 0
    for rule, code in STYLE.items():
        (tmp_path / f"{rule.lower()}.py").write_text(f'"""A module."""\n\n{code}')
        done = ruff("check", "--output-format=concise", str(tmp_path / f"{rule.lower()}.py"))
        assert done.returncode == 1 and f" {rule} " in done.stdout, (rule, done.stdout)


def test_ruff_reports_what_is_not_formatted(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    assert ruff("format", "--check", str(tmp_path)).returncode == 0
    (tmp_path / "bad.py").write_text(GOOD.replace("2 * value", "2*value"))
    assert ruff("format", "--check", str(tmp_path)).returncode == 1


def test_mypy_passes_a_good_file_and_reports_each_fault(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "wrong_type.py").write_text(GOOD.replace("2 * value", "str(value)"))
    (tmp_path / "no_annotation.py").write_text(GOOD.replace("value: int", "value"))
    (tmp_path / "no_reason.py").write_text(GOOD.replace("2 * value", "2 * value  # type: ignore[misc]"))
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--no-error-summary",
    ]
    command += ["--cache-dir", str(tmp_path / "cache"), *map(str, sorted(tmp_path.glob("*.py")))]
    done = subprocess.run(command, capture_output=True, text=True)
    errors_of = {(Path(line.partition(":")[0]).stem, line.rpartition("[")[2]) for line in done.stdout.splitlines()}
    assert done.returncode == 1 and errors_of == {
        ("wrong_type", "return-value]"), ("no_annotation", "no-untyped-def]"),
        ("no_reason", "unused-ignore]"),
    }, done.stdout  # fmt: skip
