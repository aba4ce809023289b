"""The functions of the package that one training step runs through, and their lines.

    python benchmarks/step_path.py RECIPE [a.b=c ...]
    python benchmarks/step_path.py quickstart --most-functions 60 --most-lines 900

A step is what happens from the end of one optimizer step to the end of the next, after two to warm up: rows, batch,
forward, backward, optimizer, the line of metrics. Functions are those whose file lies in the package, each counted
once; a lambda or comprehension counts with the function that it stands in. Lines are those with code: no blank ones, no
comments, no docstrings. On a GPU the backward pass runs in a thread of torch's own, which is not seen: look on a CPU.
"""

import argparse
import ast
import contextlib
import sys
import tempfile
import tokenize
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from transformers import TrainerCallback

import measure
import tunesmith

COLUMNS = ("file", "functions", "lines", "names")
PACKAGE = Path(tunesmith.__file__).parent
WARMUP = 2
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def main() -> None:
    """Train some steps, and print what the last one ran through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="recipe file or shipped recipe's name")
    parser.add_argument("words", nargs="*", default=[], metavar="a.b=c")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    parser.add_argument("--most-functions", type=int, help="exit with 1 when there are more")
    parser.add_argument("--most-lines", type=int, help="exit with 1 when there are more")
    options = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        watcher = Watcher()
        train(options.recipe, options.words, watcher, WARMUP + 2)  # the loader is a batch ahead
    rows = by_file(watcher.seen)
    functions, lines = (sum(row[place] for row in rows) for place in (1, 2))
    measure.report(f"One step of {options.recipe}", COLUMNS, [*rows, ("total", functions, lines, None)], options.json)
    if functions > (options.most_functions or functions) or lines > (options.most_lines or lines):
        sys.exit(f"a step runs through {functions} functions and {lines} lines")


class Watcher(TrainerCallback):
    """Notes every function of the package that is called in the step after the warm-up."""

    def __init__(self) -> None:
        self.seen: set[CodeType] = set()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin when the warm-up is over, and stop a step later."""
        control.should_save = False
        sys.setprofile(self.note if state.global_step == WARMUP else None)

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        """Keep the function of a call."""
        if event == "call" and Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            self.seen.add(frame.f_code)


def train(recipe_name: str, words: list[str], watcher: TrainerCallback, steps: int) -> Any:
    """Train so many steps of a recipe in a folder that is thrown away; gives back the model."""
    from tunesmith.defaults import resolve, with_values
    from tunesmith.engine.device import choose
    from tunesmith.parts import Given, Job, load, make_trainer, speaker
    from tunesmith.recipe import Recipe

    recipe = Recipe.load(recipe_name, words)
    device = choose(recipe.train.device)
    recipe = with_values(recipe, {"train.max_steps": steps, "data.eval": 0.0, "train.report_to": ()})
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as until_the_end:
        job = Job(recipe, resolve(recipe, device), device, Given(), None, speaker())
        loaded = load(job, None, None, until_the_end)
        make_trainer(job, Path(folder), loaded, [watcher]).train()
    return loaded.model


def by_file(seen: set[CodeType]) -> list[tuple[str, int, int, str]]:
    """Each file's functions, their lines with code, and their names."""
    found = []
    for path in sorted({Path(code.co_filename) for code in seen}):
        starts = {code.co_firstlineno for code in seen if Path(code.co_filename) == path}
        functions = called(ast.parse(path.read_text(encoding="utf-8")), starts)
        lines = set().union(*(own_lines(function) for function in functions)) & lines_with_code(path)
        names = ", ".join(function.name for function in functions)
        found.append((str(path.relative_to(PACKAGE)), len(functions), len(lines), names))
    return found


def called(tree: ast.Module, starts: set[int]) -> list[ast.FunctionDef]:
    """The functions that begin, or hold a lambda or comprehension that begins, at some lines."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    found = set()
    for start in starts:
        around = [function for function in functions if start in own_lines(function)]
        if around:  # a lambda of a module or class has none
            found.add(max(around, key=lambda function: function.lineno))
    return sorted(found, key=lambda function: function.lineno)


def own_lines(function: ast.FunctionDef) -> set[int]:
    """The lines of a function with its decorators, without its docstring."""
    first = min([function.lineno, *(one.lineno for one in function.decorator_list)])
    lines = set(range(first, (function.end_lineno or first) + 1))
    if ast.get_docstring(function) is not None:
        said = function.body[0]
        lines -= set(range(said.lineno, (said.end_lineno or said.lineno) + 1))
    return lines


def lines_with_code(path: Path) -> set[int]:
    """The lines of a file that are neither blank nor comments."""
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type not in NO_CODE]
    return {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}


if __name__ == "__main__":
    main()
