"""Recipes trained one after the other, or runs that are finished, and what each took and gave, beside each other."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import record
from tunesmith.errors import RecipeError, RunError
from tunesmith.folder import look_for_files, refuse_full
from tunesmith.recipe import Recipe
from tunesmith.way_on import way_on

if TYPE_CHECKING:
    from rich.console import Console

UNKNOWN = "-"  # of runs that have no such number
PREFIX = "eval_"
PARTS: dict[str, tuple[str, Callable[[Any], str]]] = {  # of a run, in the order that people read them
    "trained_parameters": ("trained parameters", "{:,}".format),
    "steps": ("steps", "{:,}".format),
    "seconds": ("seconds", "{:,.1f}".format),
    "tokens_per_second": ("tokens/s", "{:,.1f}".format),
    "peak_memory_bytes": ("peak memory", lambda bytes_: f"{bytes_ / 1e9:,.2f} GB"),
    "eval_loss": ("held-out loss", "{:.4f}".format),
}


def compare(said: Sequence[str], words: Sequence[str], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """What each of some recipes or finished runs took and gave, as JSON objects, in their order.

    A recipe is trained with the `words`, in a process of its own, so that its memory is counted alone.

    Raises:
        RecipeError, DataError, RunError: one of them cannot be used, which is said before the first is trained.
        RunError: a training failed; what finished before it is shown.
    """
    runs = [Path(one) if _is_run(one) else None for one in said]
    for run in runs:
        if run is not None:
            numbers(run)
    _refuse([one for one, run in zip(said, runs, strict=True) if run is None], words)
    from rich.console import Console

    found: list[dict[str, Any]] = []
    for number, (one, run) in enumerate(zip(said, runs, strict=True), start=1):
        if run is None:
            say(f"{number} of {len(said)}: {one}")
        try:
            found.append(numbers(run or _trained(one, words)))
        except RunError:
            if found:
                show(found, Console(stderr=True, highlight=False))
            raise
    return found


def numbers(run: Path) -> dict[str, Any]:
    """What the training of a finished run took, and what it gave. Raises RunError when it is not finished."""
    past = record.read(run)
    if "summary" not in past:
        raise RunError(f"{run} is not finished ({past['status']}). Go on with it: {way_on(run)}")
    summary = past["summary"]
    evaluation = summary.get("evaluation", {})
    return {
        "run": run.name,
        "folder": str(run),
        "trained_parameters": past.get("parameters", {}).get("trained"),
        "parameters": past.get("parameters", {}).get("all"),
        "steps": summary["steps"],
        "seconds": summary["seconds"],
        "tokens_per_second": summary["tokens"] / summary["seconds"],
        "peak_memory_bytes": past.get("peak_memory_bytes"),
        "eval_loss": summary.get("eval_loss_after"),
        "metrics": {name.removeprefix(PREFIX): value for name, value in evaluation.items() if name != f"{PREFIX}loss"},
    }


def _is_run(said: str) -> bool:
    return (Path(said) / record.FILE).is_file()


def _refuse(recipes: Sequence[str], words: Sequence[str]) -> None:
    """Say what is wrong with any of the recipes before the first is trained."""
    if words and not recipes:
        raise RecipeError(f"{words[0]} changes recipes, and these are runs that are made: leave it out")
    from tunesmith.data.render import rendered
    from tunesmith.engine.encoder_decoder import ready

    places = []
    for one in recipes:
        recipe = Recipe.load(one, words)
        look_for_files(recipe)
        refuse_full(recipe.train.output_dir)
        next(rendered(*ready(recipe)), None)  # its model is found, and its objective learns from its first rows
        places += [] if recipe.train.output_dir is None else [recipe.train.output_dir]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise RecipeError(f"train.output_dir: {twice} is that of two recipes: leave it out, or say another in each")


def _trained(recipe: str, words: Sequence[str]) -> Path:
    """The run of a recipe, made by the command line; what it says to people goes where ours goes."""
    command = [sys.executable, "-m", "tunesmith", "train", recipe, *words, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        printed, _ = process.communicate()
    if process.returncode:
        raise RunError(f"{recipe} ended with {process.returncode}, as it says above")
    return Path(json.loads(printed.splitlines()[-1])["folder"])


def lines(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The numbers for people: a name, and its text for each run."""
    rows = [
        (name, *(UNKNOWN if one[key] is None else text(one[key]) for one in found))
        for key, (name, text) in PARTS.items()
    ]
    for name in dict.fromkeys(name for one in found for name in one["metrics"]):
        rows.append((name, *(f"{one['metrics'][name]:.4g}" if name in one["metrics"] else UNKNOWN for one in found)))
    return rows


def show(found: Sequence[Mapping[str, Any]], console: "Console | None" = None) -> None:
    """Print the runs as a table, a column each."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(one["run"] for one in found), box=box.SIMPLE, padding=(0, 1, 0, 0))
    for row in lines(found):
        table.add_row(*row)
    console = console or Console(highlight=False)
    console.print(table)
    for one in found:
        console.print(f"{one['run']}: {one['folder']}", soft_wrap=True)
