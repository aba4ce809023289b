"""A model asked by some tasks, and what each of them found: numbers, a table, and a picture."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import atomic
from tunesmith.component import Section, names
from tunesmith.errors import RecipeError, RunError, near
from tunesmith.recipe import Dtype
from tunesmith.recipe_rope import RopeScaling
from tunesmith.recipe_text import read_words
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Task, TaskResult

if TYPE_CHECKING:
    from rich.console import Console

RESULTS = "results.json"


class Evaluation(Section):
    """How a model is loaded to be evaluated."""

    device: DeviceName = "auto"
    """Device to evaluate on. auto: the first present of cuda, xpu, mps, cpu."""
    dtype: Dtype | None = None
    """Precision of the weights. None: as stored, or float32 on a device without bfloat16 arithmetic."""
    rope_scaling: RopeScaling = RopeScaling()
    """How rotary positions are stretched, in place of what is stored with the model."""

    def __init__(self, **options: Any) -> None:
        from pydantic import ValidationError

        from tunesmith.explain import explain

        try:
            super().__init__(**options)
        except ValidationError as error:
            raise RecipeError(explain(error, Evaluation)) from None


def read(tasks: Sequence[str], words: Sequence[str]) -> tuple[dict[str, Task], Evaluation]:
    """The tasks of some names or files with what `task.option=value` words say of them, and how to load the model.

    Raises:
        RecipeError: there is no such task or option, or a word is of a task that is not asked for.
    """
    from tunesmith.explain import choose

    tree = read_words({}, words)
    found: dict[str, Task] = {}
    for one in tasks:
        name = Path(one).stem
        options = tree.pop(name, {})
        if not isinstance(options, dict):
            raise RecipeError(f"{name}={options!r} says nothing: say an option of the task, as in {name}.option=value")
        chosen = choose(Task, {**options, "type": one})
        assert isinstance(chosen, Task)
        found[name] = chosen
    unasked = next((name for name in tree if name in names(Task)), None)
    if unasked is not None:
        raise RecipeError(f"{unasked} has options and is not asked for: say --task {','.join([*found, unasked])}")
    unknown = next((name for name in tree if name not in Evaluation.model_fields), None)
    if unknown is not None:
        known = [*found, *Evaluation.model_fields]
        raise RecipeError(f"{unknown} is neither a task here nor an option of loading. {near(unknown, known)}")
    return found, Evaluation(**tree)


def evaluate(
    path: str, tasks: Mapping[str, Task], how: Evaluation, out: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """What each task finds of a model, as JSON has it; in a folder also each item and the pictures, where one is said.

    Raises:
        RunError: the folder holds something already.
        RunError, ModelError, DataError, RecipeError: as the model's loading and the tasks.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is {'not empty' if out.is_dir() else 'a file'}: choose another folder")
    from tunesmith.generate.subject import Subject

    subject = Subject.open(path, how.device, how.dtype, how.rope_scaling)
    for line in subject.kernels.notes:
        say(line)
    results: dict[str, Any] = {"model": path, "context_tokens": subject.context_tokens, "tasks": {}}
    for name, task in tasks.items():
        started = time.monotonic()
        found = task.run(subject)
        results["tasks"][name] = {
            "options": task.model_dump(mode="json"),
            "metrics": dict(found.metrics),
            "table": [dict(row) for row in found.table],
            "seconds": round(time.monotonic() - started, 3),
        }
        if out is not None:
            _write(out, name, found)
    if out is not None:
        atomic.write(out / RESULTS, json.dumps(results, indent=2, ensure_ascii=False).encode())
    return results


def _write(out: Path, name: str, found: TaskResult) -> None:
    """Write the items and the picture of a task."""
    out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in found.items)
    atomic.write(out / f"{name}.jsonl", lines.encode())
    if found.picture is not None:
        atomic.write(out / f"{name}.png", found.picture)


def show(results: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print what each task found as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = console or Console(highlight=False)
    made_for = results["context_tokens"]
    console.print(
        results["model"] + (f", made for {made_for:,} tokens" if made_for is not None else ""),
        markup=False,
        soft_wrap=True,
    )
    for name, one in results["tasks"].items():
        rows = one["table"] or [one["metrics"]]
        table = Table(*rows[0], title=name, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
        for row in rows:
            table.add_row(*map(_readable, row.values()))
        console.print(table)


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"
    return f"{value:,}" if isinstance(value, int) else str(value)
