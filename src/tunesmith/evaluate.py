"""A model asked by some tasks, alone or beside another one, and what each of them found."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import model_validator

from tunesmith import atomic
from tunesmith.component import names
from tunesmith.errors import RecipeError, RunError, near
from tunesmith.evaluation import _against, _kept, _report
from tunesmith.explain import Explained
from tunesmith.generate.endpoint import Server, is_address
from tunesmith.generate.engines import BESIDE, EngineName, Vllm, refuse_words, versions
from tunesmith.recipe import Dtype
from tunesmith.recipe_rope import RopeScaling
from tunesmith.recipe_text import read_words
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Task

HARNESS = "lm-eval:"  # before the name of a task of lm-eval
LOWER = "lower_is_better"
RESULTS, PAGE = "results.json", "results.md"


class Evaluation(Explained):
    """How a model is loaded to be evaluated; typed by these names alone, as in device=cpu."""

    device: DeviceName = "auto"
    """Device to evaluate on. auto: the first present of cuda, xpu, mps, cpu."""
    dtype: Dtype | None = None
    """Precision of the weights. None: as stored, or float32 on a device without bfloat16 arithmetic."""
    rope_scaling: RopeScaling = RopeScaling()
    """How rotary positions are stretched, in place of what is stored with the model."""
    cache_dir: str | None = None
    """Where results are kept. None: tunesmith's folder in the user's cache. Those of a server's model never are."""
    server: Server = Server()
    """How a model is asked that is named by a server's address, http://HOST:PORT/v1; it needs `server.tokenizer`."""
    engine: EngineName = "own"
    """What answers with a model of this process: our own engine, or vLLM."""
    vllm: Vllm = Vllm()
    """How vLLM is started."""

    @model_validator(mode="after")
    def _engine(self) -> "Evaluation":
        refuse_words(self.engine, self.vllm, self.device)
        if self.engine == "vllm" and self.rope_scaling.rope_type is not None:
            raise ValueError(
                f"rope_scaling.rope_type={self.rope_scaling.rope_type}: vLLM takes positions as they are stored: leave "
                "engine=vllm out"
            )
        return self


def read(tasks: Sequence[str], words: Sequence[str]) -> tuple[dict[str, Task], Evaluation]:
    """The tasks of some names or files with what `task.option=value` words say of them, and how to load the model.

    Raises:
        RecipeError: there is no such task or option, or a word is of a task that is not asked for.
    """
    from tunesmith.explain import choose

    tree = read_words({}, words)
    found: dict[str, Task] = {}
    named = [_named(one) for one in tasks]
    for name, kind, said in named:
        options = tree.get(kind, {})
        if not isinstance(options, dict):
            raise RecipeError(f"{kind}={options!r} says nothing: say an option of the task, as in {kind}.option=value")
        try:
            chosen = choose(Task, {**options, **said})
        except RecipeError as error:
            raise RecipeError("\n".join(_as_typed(kind, line) for line in str(error).splitlines())) from None
        assert isinstance(chosen, Task)
        found[name] = chosen
    for _, kind, _ in named:
        tree.pop(kind, None)
    unasked = next((name for name in tree if name in names(Task)), None)
    if unasked is not None:
        raise RecipeError(f"{unasked} has options and is not asked for: say --task {','.join([*found, unasked])}")
    if typed := tree.get("evaluate"):
        typed = f"{next(iter(typed))}=..." if isinstance(typed, dict) else "device=cpu"
        raise RecipeError(f"evaluate.: an option of loading is typed by its own name, as in {typed}")
    unknown = next((name for name in tree if name not in Evaluation.model_fields), None)
    own = [f"{kind}.{unknown}" for name, kind, _ in named if unknown in type(found[name]).model_fields]
    if own:
        raise RecipeError(f"{unknown} is an option of a task. Did you mean {' or '.join(map(repr, own))}?")
    if unknown is not None:
        known = [*found, *Evaluation.model_fields]
        raise RecipeError(f"{unknown} is neither a task here nor an option of loading. {near(unknown, known)}")
    return found, Evaluation(**tree)


def _named(one: str) -> tuple[str, str, dict[str, str]]:
    """What a task is called in the results, by what its options are said, and which it is."""
    if one.startswith(HARNESS):
        task = one.removeprefix(HARNESS)
        name = Path(task).stem if task.endswith((".yaml", ".yml")) else task
        return f"lm-eval-{name}", "lm_eval", {"type": "lm_eval", "task": task}
    known = [name for name in names(Task) if name != "lm_eval"]
    if one.lower() not in known and "." not in one:
        hint = "" if one == "lm_eval" else f" {near(one, known)}"
        task = "NAME" if one == "lm_eval" else one
        raise RecipeError(f"there is no task {one!r}.{hint} One of lm-eval is said as {HARNESS}{task}")
    name = one.lower() if one.lower() in known else Path(one).stem
    return name, name, {"type": one}


def _as_typed(kind: str, line: str) -> str:
    """A line about an option of a task, which it names as it is typed."""
    option, colon, rest = line.partition(": ")
    if not colon or " " in option or option in ("task", kind.replace("_", "")):
        return line
    if rest == "is required and missing":
        what = "FOLDER" if option == "data" else "VALUE"
        return f"{kind}.{option} is required: {kind}.{option}={what}; see tunesmith options {kind}"
    return f"{kind}.{option}: {rest}"


@dataclass(frozen=True)
class Asked:
    """A task for a model, and what tells it from others, where that is known."""

    model: str
    name: str
    task: Task
    tuned: bool
    file: str  # what its items are called
    mark: str | None

    @classmethod
    def of(cls, model: str, name: str, task: Task, tuned: bool, how: Evaluation, apart: bool = False) -> "Asked":
        """The task for a model that is loaded so; `apart` says that it has files of its own beside the task's."""
        from tunesmith.engine.device import choose

        shots = _against.shots_of(task)
        parts = [name, "tuned" if tuned else "base", *([f"{shots}-shot"] if shots is not None else [])]
        loaded = how.model_dump(mode="json", exclude={"cache_dir": True, "server": True, "vllm": BESIDE}) | {
            "device": choose(how.device).type
        }
        loaded |= versions(how.engine, model)
        mark = _kept.fingerprint(model, task, loaded)
        return cls(model, name, task, tuned, "-".join(parts) if apart else name, mark)


def evaluate(
    path: str,
    tasks: Mapping[str, Task],
    how: Evaluation,
    out: Path | None,
    say: Callable[[str], None],
    against: str | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """What each task finds of a model, as JSON has it; in a folder also as a page, each item and the pictures.

    `against` is another model that is asked too, `base` the one that a run began with. What was found before with the
    same model, task, data and versions is taken from the cache, unless `fresh` asks for it anew.

    Raises:
        RunError: the folder holds something else than this evaluation.
        RunError, ModelError, DataError, RecipeError: as the model's loading and the tasks.
    """
    from tunesmith import record
    from tunesmith.generate.load import other_of

    base = None if against is None else other_of(path, against)
    asked = [Asked.of(path, name, task, True, how) for name, task in tasks.items()]
    if base is not None:
        for name, task in tasks.items():
            some = _against.variants(task)
            asked += [Asked.of(path, name, one, True, how, apart=True) for one in some if one is not task]
            asked += [Asked.of(base, name, one, False, how, apart=True) for one in some]
    _look(out, asked)
    found: list[tuple[Asked, _kept.Found]] = []
    for model in dict.fromkeys(one.model for one in asked):
        found += _answered(model, [one for one in asked if one.model == model], how, fresh, say)
    own = {one.name: told.result for one, told in found if one.file == one.name}
    results: dict[str, Any] = {"model": path, "context_tokens": next(iter(own.values()))["context_tokens"]}
    results |= {"versions": record.versions(), "tasks": own}
    if base is not None:
        sides = [_against.Side(one.model, one.tuned, _against.shots_of(one.task), told) for one, told in found]
        names = [one.name for one, _ in found]
        by_task = {name: [side for side, of in zip(sides, names, strict=True) if of == name] for name in tasks}
        told = {name: _against.compared(some, _lower(tasks[name], some)) for name, some in by_task.items()}
        results["against"] = {"model": base, "tasks": told}
    if out is not None:
        results["fingerprints"] = [one.mark for one in asked]
        _write(out, results, {one.file: told for one, told in found})
    return results


def _lower(task: Task, sides: Sequence[_against.Side]) -> bool:
    """Whether the lower number is the better one."""
    return bool(sides[0].found.result.get(LOWER, type(task).lower_is_better))


def _answered(
    model: str, asked: Sequence[Asked], how: Evaluation, fresh: bool, say: Callable[[str], None]
) -> Iterator[tuple[Asked, _kept.Found]]:
    """What each task found of one model, which is loaded when the first of them is not kept."""
    subject: Any = None
    for one in asked:
        place = None if one.mark is None else _kept.place(how.cache_dir, one.mark)
        kept = None if place is None or fresh else _kept.read(place)
        if kept is not None:
            say(f"{one.name} of {model} is in the cache ({place}): --fresh computes it again")
            yield one, replace(kept, result=kept.result | {"cached": True})
            continue
        if subject is None:
            subject = _subject(model, how)
            for line in subject.notes:
                say(line)
        yield one, _run(subject, one, place, say)


def _subject(model: str, how: Evaluation) -> Any:
    if is_address(model):
        from tunesmith.generate.subject_at import AtAddress

        return AtAddress.at(model, how.server)
    if how.engine == "vllm":
        from tunesmith.generate.subject_by_vllm import InVllm

        return InVllm.started(model, how.dtype, how.vllm)
    from tunesmith.generate.subject import Subject

    return Subject.open(model, how.device, how.dtype, how.rope_scaling)


def _run(subject: Any, one: Asked, place: Path | None, say: Callable[[str], None]) -> _kept.Found:
    from tunesmith.evaluation._remembered import remembered

    started = time.monotonic()
    journal = None if place is None else place.with_suffix(".jsonl")
    with remembered(subject, journal, one.name, say) as asked:
        told = one.task.run(asked)
    result = {
        "options": one.task.model_dump(mode="json"),
        "metrics": dict(told.metrics),
        "intervals": {name: list(interval) for name, interval in told.intervals.items()},
        "table": [dict(row) for row in told.table],
        "seconds": round(time.monotonic() - started, 3),
        "context_tokens": subject.context_tokens,
        "cached": False,
    }
    result |= {} if told.lower_is_better is None else {LOWER: told.lower_is_better}
    found = _kept.Found(result, [dict(item) for item in told.items], told.picture)
    if place is not None:
        _kept.write(place, found)
    return found


def _look(out: Path | None, asked: Sequence[Asked]) -> None:
    """Refuse a folder that holds something else than these very evaluations."""
    if out is None or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    marks = [one.mark for one in asked]
    if (out / RESULTS).is_file() and None not in marks:
        past = json.loads((out / RESULTS).read_text(encoding="utf-8"))
        if past.get("fingerprints") == marks:
            return
    raise RunError(f"{out} is {'not empty' if out.is_dir() else 'a file'}: choose another folder")


def _write(out: Path, results: Mapping[str, Any], found: Mapping[str, _kept.Found]) -> None:
    """Write the results, the page, and the items and pictures of each task."""
    out.mkdir(parents=True, exist_ok=True)
    for name, one in found.items():
        atomic.write(out / f"{name}.jsonl", _kept.lines(one.items))
        if one.picture is not None:
            atomic.write(out / f"{name}.png", one.picture)
    atomic.write(out / PAGE, _report.markdown(results).encode())
    atomic.write(out / RESULTS, json.dumps(results, indent=2, ensure_ascii=False).encode())
