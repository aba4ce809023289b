"""Train, top to bottom: look, render, pack, load, adapt, train, save."""

import contextlib
import json
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import atomic
from tunesmith.adapted import Adapted, adapt, precision
from tunesmith.defaults import Device, Resolved, resolve, with_values
from tunesmith.errors import RecipeError, RunError
from tunesmith.folder import FINAL, look_for_files, new_folder, refuse_full
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from tunesmith.data.load import Rows
    from tunesmith.engine.kernels import Kernels
    from tunesmith.engine.trainer import Metric, Trainer


@dataclass(frozen=True)
class Run:
    """A run folder, and how its training ended."""

    folder: Path
    summary: dict[str, Any]
    exit_code: int = 0  # 128 + the signal's number when one stopped it


@dataclass(frozen=True)
class Given:
    """What a Python caller brings in place of, or beside, what the recipe names."""

    model: "PreTrainedModel | None" = None
    tokenizer: "PreTrainedTokenizerBase | None" = None
    rows: Iterable[Mapping[str, Any]] | None = None
    callbacks: "Sequence[TrainerCallback]" = ()
    metrics: "Mapping[str, Metric] | None" = None

    def names(self) -> list[str]:
        """What was brought."""
        return [name for name, value in vars(self).items() if value is not None and value != ()]


@dataclass(frozen=True)
class Job:
    """One call of the program: a new run, or an old one that goes on."""

    recipe: Recipe  # as the user wrote it
    resolved: Resolved
    device: Device
    given: Given
    folder: Path | None  # the run to go on with; None: a new one
    say: Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """What is trained, and what it is trained with."""

    model: Any  # adapted
    tokenizer: "PreTrainedTokenizerBase"  # as the template prepared it
    rows: "Rows"
    kernels: "Kernels"
    fingerprint: str | None  # of the weights that training starts from


def train(
    recipe: Recipe | str,
    *,
    model: "PreTrainedModel | None" = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    callbacks: "Sequence[TrainerCallback]" = (),
    metrics: "Mapping[str, Metric] | None" = None,
) -> Run:
    """Train as a recipe (or the recipe in a file) says, in a new run folder.

    A script may bring a loaded `model` and `tokenizer` (in place of `model.path`'s), `rows` (in place of the files of
    `data.train`, read with its first source's format), transformers `callbacks`, and `metrics`: functions of
    (Scores, Batch) that give a sum and a count.

    Raises:
        RecipeError, DataError, TemplateError, ModelError: something cannot be used; nothing was written.
        RunError: the folder holds something, or training cannot go on; what was saved is kept.
    """
    recipe = Recipe.load(recipe) if isinstance(recipe, str) else recipe
    look_for_files(recipe, with_train=rows is None)
    refuse_full(recipe.train.output_dir)
    from tunesmith.engine.device import choose

    device = choose(recipe.train.device)
    given = Given(model, tokenizer, rows, callbacks, metrics)
    return _run(Job(recipe, resolve(recipe, device), device, given, None, _speaker()))


def resume(
    folder: Path,
    *,
    model: "PreTrainedModel | None" = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    callbacks: "Sequence[TrainerCallback]" = (),
    metrics: "Mapping[str, Metric] | None" = None,
) -> Run:
    """Go on with a run from its newest whole checkpoint; what follows equals an uninterrupted run's.

    What a script brought to `train` it brings again.

    Raises:
        RunError: the folder is no run, its data or model changed, or no checkpoint is whole.
    """
    from tunesmith import ending, record
    from tunesmith.engine.device import choose

    folder, say = Path(folder).absolute(), _speaker()
    past = record.read(folder)
    if (folder / FINAL).is_dir():
        say(f"{folder} is finished: nothing to do")
        return Run(folder, past["summary"] if "summary" in past else ending.finish(folder, say))
    given = Given(model, tokenizer, rows, callbacks, metrics)
    missing = [name for name in past["given"] if name not in given.names()]
    if missing:
        raise RunError(
            f"{folder} was begun by a script that brought {', '.join(missing)}: go on with "
            f"tunesmith.resume(folder, {', '.join(f'{name}=...' for name in missing)})"
        )
    with _working_folder(past["working_folder"], say):
        recipe = Recipe.load(str(folder / "recipe.yaml"))
        look_for_files(recipe, with_train=given.rows is None)
        resolved = Resolved(with_values(recipe, past["derived"]), past["derived"])
        device = choose(resolved.recipe.train.device)
        return _run(Job(recipe, resolved, device, given, folder, say))


def _speaker() -> Callable[[str], None]:
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    return lambda line: console.print(line, markup=False, soft_wrap=True)


@contextlib.contextmanager
def _working_folder(place: str, say: Callable[[str], None]) -> Any:
    """The folder where a run began, which the recipe's paths are relative to."""
    if Path(place) == Path.cwd() or not Path(place).is_dir():
        yield
        return
    say(f"paths are relative to {place}, where the run began")
    with contextlib.chdir(place):
        yield


def _run(job: Job) -> Run:
    """A run from its beginning, or from its newest checkpoint, to its end."""
    from tunesmith.engine import checkpoint

    start, problems = checkpoint.newest(job.folder) if job.folder else (None, [])
    for problem in problems:
        job.say(f"passed over: {problem}")
    adapted = None
    if job.resolved.recipe.train.row_tokens == "auto":  # rows are packed to fit beside the model, so it comes first
        adapted = _adapt(job)
        job = _with_fitting_rows(job, adapted)
    with contextlib.ExitStack() as until_the_end:
        loaded = _load(job, start, adapted, until_the_end)
        folder = _go_on(job, loaded, start) if job.folder else _begin(job, loaded)
        return _train(job, start, loaded, folder)


def _train(job: Job, start: Path | None, loaded: Loaded, folder: Path) -> Run:
    """What happens in the run folder."""
    from tunesmith import ending
    from tunesmith.engine import memory
    from tunesmith.engine.callbacks import StopOnSignal
    from tunesmith.engine.progress import Progress

    stop, progress = StopOnSignal(job.say), Progress()
    try:
        trainer = _trainer(job, folder, loaded, [progress, stop])
    except Exception:
        if job.folder is None:  # nothing has happened in it
            shutil.rmtree(folder)
        raise
    go_on = f"tunesmith train {shlex.quote(str(folder))}"
    with atomic.room(folder, RunError, f"Make room, then go on with: {go_on}"):
        try:
            explained = memory.explained(
                trainer.place, lambda: _fitting_row(job, loaded, trainer), folder, trainer.recipe
            )
            with stop.listening(), contextlib.closing(progress), explained:
                if start is None and loaded.rows.held_out is not None:
                    trainer.evaluate()
                if start is None or not trainer.was_over(start):
                    trainer.train(resume_from_checkpoint=str(start) if start else None)
            step = trainer.state.global_step
            if stop.received is not None:
                job.say(f"stopped at step {step}. Go on with: {go_on}")
                return Run(folder, ending.interrupted(folder, step, stop.received), 128 + stop.received)
            trainer.log_the_rest()
            _save_final(trainer, loaded, folder)
        except KeyboardInterrupt:
            job.say(f"stopped at once. Go on with: {go_on}")
            raise
        finally:
            loaded.kernels.restore(trainer.accelerator.unwrap_model(loaded.model, keep_fp32_wrapper=False))
        return Run(folder, ending.finish(folder, job.say))


def _load(job: Job, start: Path | None, adapted: Adapted | None, until_the_end: contextlib.ExitStack) -> Loaded:
    """The rows and the adapted model, each said; rows that are streamed, from a checkpoint on."""
    from tunesmith.data.load import context_problem, load_rows
    from tunesmith.engine import checkpoint
    from tunesmith.engine.arguments import look_for_trackers
    from tunesmith.engine.model import base_of, load_tokenizer

    recipe, say = job.resolved.recipe, job.say
    for option, value in job.resolved.derived.items():
        say(f"derived: {option} = {value}")
    look_for_trackers(recipe.train.report_to)
    tokenizer = recipe.data.template.prepare(job.given.tokenizer or load_tokenizer(recipe.model))
    point = checkpoint.read_state(start)["counters"]["stream"] if start and recipe.data.streaming else None
    rows = until_the_end.enter_context(contextlib.closing(load_rows(recipe, tokenizer, job.given.rows, point)))
    for line in rows.lines:
        say(line)
    adapted = adapted or _adapt(job)
    model = adapted.model
    if not adapted.kernels.shares and any(part.get("shared_tokens") for part in rows.ledger.values()):
        name = type(base_of(model)).__name__
        raise RecipeError(
            f"{name} does not run packed attention, without which sequences cannot share a beginning: "
            "set data.shared_prefix=false"
        )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    problem = context_problem(rows.ledger, base_of(model).config)
    for line in (
        *adapted.kernels.notes,
        *([problem] if problem else []),
        f"parameters: {trained:,} of {total:,} trained ({trained / total:.2%})",
        f"device: {job.device.type} ({job.device.name})",
    ):
        say(line)
    return Loaded(model, tokenizer, rows, adapted.kernels, adapted.fingerprint)


def _adapt(job: Job) -> Adapted:
    return adapt(job.resolved.recipe, job.device.type, job.given.model)


def _with_fitting_rows(job: Job, adapted: Adapted) -> Job:
    """The job with the number of `train.row_tokens: auto`, which a run that goes on finds in its record."""
    from tunesmith.engine import memory

    recipe, derived = job.resolved.recipe, job.resolved.derived
    with precision(recipe, job.device.type):
        chosen = {"train.row_tokens": memory.choose_row(adapted.model, adapted.kernels.scorer, recipe)}
    return replace(job, resolved=Resolved(with_values(recipe, chosen), derived | chosen))


def _fitting_row(job: Job, loaded: Loaded, trainer: "Trainer") -> int:
    """The tokens of a row that would have fitted where memory ran out."""
    from tunesmith.engine import memory

    stepped = trainer.optimizer is not None and trainer.optimizer.state
    reserved = 0 if stepped else memory.state_bytes(loaded.model, trainer.recipe)
    with precision(trainer.recipe, job.device.type):
        return memory.fitting_row(loaded.model, loaded.kernels.scorer, trainer.recipe, reserved)


def _begin(job: Job, loaded: Loaded) -> Path:
    """The folder of a new run, with its recipe, ledger and record."""
    import yaml

    from tunesmith import record
    from tunesmith.data.picture import data_picture

    said = job.recipe.model_dump(mode="json", exclude_unset=True)
    data = {"fingerprint": loaded.rows.fingerprint, "ledger": loaded.rows.ledger}
    begun = record.begin(job.resolved, job.device, data, loaded.fingerprint, job.given.names())
    folder = new_folder(
        job.resolved.recipe,
        {
            "recipe.yaml": yaml.safe_dump(said, sort_keys=False, allow_unicode=True).encode(),
            "ledger.json": json.dumps(loaded.rows.ledger, indent=2).encode(),
            "data.png": data_picture(loaded.rows.ledger["train"]),
            record.FILE: record.text(begun),
        },
    )
    job.say(f"run folder: {folder}")
    return folder


def _go_on(job: Job, loaded: Loaded, start: Path | None) -> Path:
    """Take up an old run where its checkpoint left it, and drop what came later."""
    from tunesmith import record
    from tunesmith.engine import checkpoint
    from tunesmith.engine.metrics import MetricsFile

    assert job.folder is not None
    past = record.read(job.folder)
    for what, before, now in (
        ("data", past["data"]["fingerprint"], loaded.rows.fingerprint),
        ("model", past["model"], loaded.fingerprint),
    ):
        if before != now:
            raise RunError(
                f"the {what} of {job.folder} is not what it was when the run began, so it cannot go on exactly. "
                "Bring it back, or start a new run"
            )
    step = int(start.name.removeprefix("step-")) if start else -1
    checkpoint.forget_after(job.folder, step)
    with atomic.room(job.folder, RunError, "Make room, and say this again"):
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (job.folder / name).exists():
                MetricsFile(job.folder / name).trim(step)
        record.write(job.folder, past | {"status": "running", "resumed": [*past["resumed"], max(step, 0)]})
    job.say(f"going on with {job.folder} at step {max(step, 0)}")
    return job.folder


def _trainer(job: Job, folder: Path, loaded: Loaded, watchers: "list[TrainerCallback]") -> "Trainer":
    from tunesmith.engine.arguments import arguments
    from tunesmith.engine.callbacks import AnswerQuestions, KeepBest, LastLine
    from tunesmith.engine.trainer import Trainer
    from tunesmith.generate.engine import Generator

    recipe, rows = job.resolved.recipe, loaded.rows

    def answer(trained: Any, question: str) -> str:
        with loaded.kernels.generating(trained):
            generator = Generator(trained, loaded.tokenizer)
            return generator.complete(
                [{"role": "user", "content": question}], max_new_tokens=recipe.eval.max_new_tokens
            )

    callbacks: list[TrainerCallback] = [LastLine(), AnswerQuestions(folder, recipe.eval.prompts, answer)]
    if recipe.eval.load_best_model_at_end or recipe.eval.early_stopping_patience:
        callbacks.append(KeepBest(recipe.eval.early_stopping_patience, job.say))
    per_step = recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps
    max_steps = -(-len(rows.train) // per_step)
    args = arguments(recipe, folder, max_steps, rows.held_out is not None)
    try:
        return Trainer(
            recipe,
            loaded.model,
            loaded.kernels.scorer,
            args,
            rows.train,
            rows.held_out,
            [*callbacks, *job.given.callbacks, *watchers],
            job.given.metrics or {},
            loaded.tokenizer,
        )
    except (RuntimeError, ValueError, ImportError) as error:  # a tracker that is not installed, mostly
        raise RecipeError(f"train: transformers says: {str(error).splitlines()[0]}") from error


def _save_final(trainer: "Trainer", loaded: Loaded, folder: Path) -> None:
    """Write `final/`: plain weights, tokenizer, template, and the tokens that end an answer."""
    from tunesmith.engine import checkpoint

    model = trainer.accelerator.unwrap_model(trainer.model)
    best = trainer.state.best_global_step
    if trainer.recipe.eval.load_best_model_at_end and best:
        place = checkpoint.place(folder, best)
        problem = checkpoint.damage(place)
        if problem is not None:
            raise RunError(f"the best weights cannot be loaded: {problem}. Its last are in {folder}/checkpoints")
        checkpoint.load_weights(model, place)
    with checkpoint.atomic_folder(folder / FINAL) as final:
        checkpoint.save_weights(model, final)
        loaded.tokenizer.save_pretrained(final)
        checkpoint.save_ends(model, final, {loaded.tokenizer.eos_token_id, *loaded.rows.end_tokens})
