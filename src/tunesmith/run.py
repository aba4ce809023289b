"""Train, top to bottom: look, render, pack, load, adapt, train, save."""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import atomic
from tunesmith.adapted import parameters, precision
from tunesmith.defaults import Resolved, resolve, with_values
from tunesmith.engine.allocator import use_large_pages
from tunesmith.errors import RecipeError, RunError
from tunesmith.folder import FINAL, look_for_files, new_folder, refuse_full
from tunesmith.parts import Given, Job, Loaded, fitted, load, make_trainer, speaker
from tunesmith.recipe import Recipe
from tunesmith.way_on import way_on

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from tunesmith.engine.trainer import Metric, Trainer


@dataclass(frozen=True)
class Run:
    """A run folder, and how its training ended."""

    folder: Path
    summary: dict[str, Any]
    exit_code: int = 0  # 128 + the signal's number when one stopped it


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
    use_large_pages()
    recipe = Recipe.load(recipe) if isinstance(recipe, str) else recipe
    look_for_files(recipe, with_train=rows is None)
    from tunesmith.engine import ranks
    from tunesmith.engine.device import choose
    from tunesmith.planner import plan

    warning = plan.warning(recipe) if model is None else None
    if warning is not None:
        sys.stderr.write(f"{warning}\n")
    device = choose(recipe.train.device)
    ranks.meet(device.type)
    begun = _begun(recipe)
    if begun is not None:
        return resume(begun, model=model, tokenizer=tokenizer, rows=rows, callbacks=callbacks, metrics=metrics)
    refuse_full(recipe.train.output_dir)
    given = Given(model, tokenizer, rows, callbacks, metrics)
    return _run(Job(recipe, resolve(recipe, device), device, given, None, speaker()))


def _begun(recipe: Recipe) -> Path | None:
    """The run that these processes began before their starter began them again; None when there is none.

    Whose run a folder holds is told by the name of its job, and where that has none by the recipe.

    Raises:
        RunError: the recipe does not say where it lies.
    """
    from tunesmith import record
    from tunesmith.engine import ranks

    again, job = ranks.restarted(), ranks.job()
    if recipe.train.output_dir is None and again:
        raise RunError(
            f"{recipe.name} was started again after a crash, and does not say where its run lies: set "
            "train.output_dir to go on by itself"
        )
    if recipe.train.output_dir is None or not (again or job):
        return None
    folder = Path(recipe.train.output_dir).expanduser()

    def theirs() -> bool:
        if not (folder / record.FILE).is_file():
            return False
        past = record.read(folder)
        return past.get("job") == job and (job is not None or _said(recipe) == _said_in(folder))

    return folder if ranks.once(theirs) else None


def _said(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says, and not what it leaves open."""
    return recipe.model_dump(mode="json", exclude_unset=True)


def _said_in(folder: Path) -> Any:
    """What the recipe of a run said."""
    import yaml

    return yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))


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
    use_large_pages()
    from tunesmith import ending, record
    from tunesmith.engine import ranks
    from tunesmith.engine.device import choose

    folder, say = Path(folder).absolute(), speaker()
    past = record.read(folder)
    if (folder / FINAL).is_dir():
        say(f"{folder} is finished: nothing to do")
        return Run(folder, past["summary"] if "summary" in past else ending.finish(folder, say))
    given = Given(model, tokenizer, rows, callbacks, metrics)
    missing = [name for name in past["given"] if name not in given.names()]
    if missing:
        raise RunError(f"{folder} was begun by a script that brought {', '.join(missing)}: go on with {way_on(folder)}")
    with _working_folder(past["working_folder"], say):
        recipe = Recipe.load(str(folder / "recipe.yaml"))
        for line in record.changes(past, recipe):
            say(f"{folder}/recipe.yaml was changed: {line}")
        look_for_files(recipe, with_train=given.rows is None)
        derived = past["derived"] | _shared_anew(folder, with_values(recipe, past["derived"]), past)
        resolved = Resolved(with_values(recipe, derived), derived)
        device = choose(resolved.recipe.train.device)
        ranks.meet(device.type)
        return _run(Job(recipe, resolved, device, given, folder, say))


def _shared_anew(folder: Path, recipe: Recipe, past: Mapping[str, Any]) -> dict[str, int]:
    """The micro-batches of a step that each of another number of processes takes, where a run goes on with such.

    Raises:
        RunError: they cannot take equal shares.
    """
    from tunesmith.engine import context, ranks

    began = past.get("num_processes", 1)  # before it was recorded, every run had one
    if began == ranks.number():
        return {}
    takers = context.groups(recipe)
    batches = recipe.train.gradient_accumulation_steps * context.groups(recipe, began)
    if batches % takers:
        raise RunError(
            f"a step of {folder} has {batches} micro-batches, of which {ranks.number()} processes cannot take as many "
            f"each: start {began}, as it was, or another number that divides {batches}"
        )
    return {"train.gradient_accumulation_steps": batches // takers}


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
    from tunesmith.engine import checkpoint, ranks

    start, problems = checkpoint.newest(job.folder) if job.folder else (None, [])
    for problem in problems:
        job.say(f"passed over: {problem}")
    with contextlib.ExitStack() as until_the_end:
        job, adapted = fitted(job, until_the_end)
        loaded = load(job, start, adapted, until_the_end)
        folder = ranks.once(lambda: _go_on(job, loaded, start) if job.folder else _begin(job, loaded))
        return _train(job, start, loaded, folder)


def _train(job: Job, start: Path | None, loaded: Loaded, folder: Path) -> Run:
    """What happens in the run folder."""
    from tunesmith import ending
    from tunesmith.engine import companions, memory, ranks
    from tunesmith.engine.arguments import warm_up_note
    from tunesmith.engine.callbacks import StopOnSignal
    from tunesmith.engine.device import peak_memory_bytes
    from tunesmith.engine.progress import Progress

    stop, progress = StopOnSignal(job.say), Progress()
    try:
        trainer = make_trainer(job, folder, loaded, [progress, stop])
    except Exception:
        if job.folder is None and ranks.own() == 0:  # nothing has happened in it
            shutil.rmtree(folder)
        raise
    note = warm_up_note(trainer.args) if start is None else None
    if note is not None:
        job.say(note)
    go_on = way_on(folder)
    with atomic.room(folder, RunError, f"Make room, then go on with: {go_on}"):
        try:
            explained = memory.explained(
                trainer.place, lambda: _fitting_row(job, loaded, trainer), folder, trainer.recipe
            )
            with stop.listening(), contextlib.closing(progress), explained, trainer.saving:
                if start is None and loaded.rows.held_out is not None:
                    trainer.evaluate()
                if start is None or not trainer.was_over(start):
                    trainer.train(resume_from_checkpoint=str(start) if start else None)
            step = trainer.state.global_step
            if stop.received is not None:
                job.say(f"stopped at step {step}. Go on with: {go_on}")
                number = stop.received
                return Run(folder, ranks.once(lambda: ending.interrupted(folder, step, number)), 128 + number)
            trainer.log_the_rest()
            state = _last_weights(trainer, folder)
            ranks.once(lambda: _save_final(trainer, loaded, folder, state))
            for line in ranks.once(lambda: companions.written(trainer.companions, folder)):
                job.say(line)
        except RecipeError:  # what only the number of steps shows
            if job.folder is None and trainer.state.global_step == 0 and ranks.own() == 0:
                shutil.rmtree(folder)
            raise
        except KeyboardInterrupt:
            job.say(f"stopped at once. Go on with: {go_on}")
            raise
        finally:
            loaded.kernels.restore(trainer.accelerator.unwrap_model(loaded.model, keep_fp32_wrapper=False))
        peak = max(ranks.everyones(peak_memory_bytes(job.device.type)))
        return Run(folder, ranks.once(lambda: ending.finish(folder, job.say, peak)))


def _fitting_row(job: Job, loaded: Loaded, trainer: "Trainer") -> int:
    """The tokens of a row that would have fitted where memory ran out."""
    from tunesmith.engine import memory, shared_out

    if loaded.begun is not None or shared_out.is_shared(loaded.model) or loaded.group is not None:
        said = trainer.recipe.parallel
        raise RecipeError(
            f"parallel: strategy={said.strategy}, context={said.context}, tensor={said.tensor}: one process cannot "
            "measure what all of them compute"
        )
    stepped = trainer.optimizer is not None and trainer.optimizer.state
    if trainer.optimizer is not None and trainer.released:
        trainer.released.end()  # before random tokens go through: no step follows
    reserved = 0 if stepped else memory.state_bytes(loaded.model, trainer.recipe)
    with precision(trainer.recipe, job.device.type):
        return memory.fitting_row(loaded.model, loaded.kernels.scorer, trainer.recipe, reserved)


def _begin(job: Job, loaded: Loaded) -> Path:
    """The folder of a new run, with its recipe, ledger and record."""
    import yaml

    from tunesmith import record
    from tunesmith.data.picture import data_picture

    data = {"fingerprint": loaded.rows.fingerprint, "ledger": loaded.rows.ledger}
    begun = record.begin(job.resolved, job.device, data, loaded.fingerprint, job.given.names())
    begun |= {"teacher": loaded.teacher, "reference": loaded.referred, "parameters": parameters(loaded.model)}
    folder = new_folder(
        job.resolved.recipe,
        {
            "recipe.yaml": yaml.safe_dump(_said(job.recipe), sort_keys=False, allow_unicode=True).encode(),
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
    from tunesmith.engine import checkpoint, ranks
    from tunesmith.engine.metrics import MetricsFile

    assert job.folder is not None
    past = record.read(job.folder)
    for what, before, now in (
        ("data", past["data"]["fingerprint"], loaded.rows.fingerprint),
        ("model", past["model"], loaded.fingerprint),
        ("teacher", past.get("teacher"), loaded.teacher),
        ("reference", past.get("reference"), loaded.referred),
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
        as_now = {"status": "running", "num_processes": ranks.number(), "derived": job.resolved.derived}
        record.write(job.folder, past | as_now | {"resumed": [*past["resumed"], max(step, 0)]})
    every = job.resolved.recipe.train.save_steps
    whence = (
        f"at step {step}" if start else f"from its beginning: no checkpoint was written yet (train.save_steps={every})"
    )
    job.say(f"going on with {job.folder} {whence}")
    return job.folder


def _last_weights(trainer: "Trainer", folder: Path) -> "Mapping[str, torch.Tensor] | None":
    """Put the best weights into the model, if they were asked for; the whole state of one whose own lie in parts."""
    from tunesmith.engine import checkpoint, companions, shared_out
    from tunesmith.engine.model import is_adapted

    model = trainer.accelerator.unwrap_model(trainer.model)
    best = trainer.state.best_global_step
    if trainer.recipe.eval.load_best_model_at_end and best:
        place = checkpoint.place(folder, best)
        problem = checkpoint.damage(place)
        if problem is not None:
            raise RunError(f"the best weights cannot be loaded: {problem}. Its last are in {folder}/checkpoints")
        checkpoint.load_weights(model, place)
        trainer.take_up_companions(place)
    if not shared_out.is_shared(model):
        return None
    shared_out.rest(model)
    with companions.settled(trainer.companions):
        if is_adapted(model):
            shared_out.gather([one for one in model.parameters() if one.requires_grad])
            return None
        return shared_out.whole_state(model)


def _save_final(trainer: "Trainer", loaded: Loaded, folder: Path, state: "Mapping[str, torch.Tensor] | None") -> None:
    """Write `final/`: plain weights, tokenizer, template, and the tokens that end an answer."""
    from tunesmith.engine import checkpoint, companions
    from tunesmith.engine.model import has_words

    model = trainer.accelerator.unwrap_model(trainer.model)
    with companions.settled(trainer.companions), checkpoint.atomic_folder(folder / FINAL) as final:
        checkpoint.save_weights(model, final, state)
        loaded.tokenizer.save_pretrained(final)
        if has_words(model):
            checkpoint.save_ends(model, final, {loaded.tokenizer.eos_token_id, *loaded.rows.end_tokens})
