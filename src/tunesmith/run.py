"""Train, top to bottom: look, render, pack, load, adapt, train, save."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """What a Python caller brings in place of what the recipe names."""

    model: "PreTrainedModel | None" = None
    tokenizer: "PreTrainedTokenizerBase | None" = None
    rows: Iterable[Mapping[str, Any]] | None = None
    callbacks: "Sequence[TrainerCallback]" = ()
    metrics: "Mapping[str, Metric] | None" = None


@dataclass(frozen=True)
class Job:
    """One call of the program: a new run, or an old one that goes on."""

    recipe: Recipe  # as the user wrote it
    resolved: Resolved
    device: Device
    given: Given
    folder: Path | None  # the run to go on with; None: a new one
    say: Callable[[str], None]


def train(
    recipe: Recipe,
    *,
    model: "PreTrainedModel | None" = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    callbacks: "Sequence[TrainerCallback]" = (),
    metrics: "Mapping[str, Metric] | None" = None,
) -> Run:
    """Train as a recipe says, in a new run folder.

    A script may bring a loaded `model` and `tokenizer` (in place of `model.path`'s), `rows` (in place of the files of
    `data.train`, read with its first source's format), transformers `callbacks`, and `metrics`: functions of
    (Scores, Batch) that give a sum and a count.

    Raises:
        TunesmithError: the recipe, the data, the model or the folder cannot be used; nothing was written.
    """
    look_for_files(recipe, with_train=rows is None)
    refuse_full(recipe.train.output_dir)
    from tunesmith.engine.device import choose

    device = choose(recipe.train.device)
    given = Given(model, tokenizer, rows, callbacks, metrics)
    return _run(Job(recipe, resolve(recipe, device), device, given, None, _speaker()))


def resume(folder: Path) -> Run:
    """Go on with a run from its newest whole checkpoint; what follows equals an uninterrupted run's.

    Raises:
        RunError: the folder is no run, its data changed, or no checkpoint is whole.
    """
    from tunesmith import record
    from tunesmith.engine.device import choose

    past = record.read(folder)
    say = _speaker()
    if (folder / FINAL).is_dir():
        say(f"{folder} is finished: nothing to do")
        return Run(folder, past.get("summary", {}))
    recipe = Recipe.load(str(folder / "recipe.yaml"))
    look_for_files(recipe)
    resolved = Resolved(with_values(recipe, past["derived"]), past["derived"])
    device = choose(resolved.recipe.train.device)
    return _run(Job(recipe, resolved, device, Given(), folder, say))


def _speaker() -> Callable[[str], None]:
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    return lambda line: console.print(line, markup=False, soft_wrap=True)


def _run(job: Job) -> Run:
    """The whole story of a run."""
    import transformers

    from tunesmith.data.load import load_rows
    from tunesmith.engine import checkpoint, kernels
    from tunesmith.engine.callbacks import StopOnSignal
    from tunesmith.engine.model import load_model, load_tokenizer
    from tunesmith.engine.progress import Progress

    recipe, say = job.resolved.recipe, job.say
    for option, value in job.resolved.derived.items():
        say(f"derived: {option} = {value}")
    tokenizer = recipe.data.template.prepare(job.given.tokenizer or load_tokenizer(recipe.model))
    rows = load_rows(recipe, tokenizer, job.given.rows)
    for line in rows.lines:
        say(line)

    transformers.set_seed(recipe.train.seed)
    loaded = job.given.model if job.given.model is not None else load_model(recipe.model, job.device.type)
    model = recipe.adapter.apply(loaded)
    chosen = kernels.choose(model)
    for line in (*chosen.notes, _parameters(model), f"device: {job.device.type} ({job.device.name})"):
        say(line)

    start, problems = checkpoint.newest(job.folder) if job.folder else (None, [])
    for problem in problems:
        say(f"passed over: {problem}")
    folder = _open_folder(job, rows, start)
    stop, progress = StopOnSignal(say), Progress()
    try:
        trainer = _trainer(job, folder, rows, model, tokenizer, chosen, [progress, stop])
    except Exception:
        if job.folder is None:  # nothing has happened in it
            shutil.rmtree(folder)
        raise
    with stop.listening(), contextlib.closing(progress):
        if start is None and rows.held_out is not None:
            trainer.evaluate()
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    if stop.received is not None:
        say(f"stopped at step {trainer.state.global_step}. Go on with: tunesmith train {folder}")
        return Run(folder, {"step": trainer.state.global_step}, 128 + stop.received)
    _save_final(trainer, tokenizer, rows, folder)
    return Run(folder, _finish(job, trainer, folder))


def _parameters(model: Any) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return f"parameters: {trained:,} of {total:,} trained ({trained / total:.2%})"


def _open_folder(job: Job, rows: "Rows", start: Path | None) -> Path:
    """Make the run folder, or take up an old one where its checkpoint left it."""
    import yaml

    from tunesmith import record
    from tunesmith.engine.metrics import MetricsFile

    if job.folder is not None:
        past = record.read(job.folder)
        if past["data"]["fingerprint"] != rows.fingerprint:
            raise RunError(
                f"the data of {job.folder} is not what it was when the run began, so it cannot go on exactly. "
                "Bring the files back, or start a new run"
            )
        step = int(start.name.removeprefix("step-")) if start else -1
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (job.folder / name).exists():
                MetricsFile(job.folder / name).trim(step)
        record.write(job.folder, past | {"resumed": [*past["resumed"], max(step, 0)]})
        job.say(f"going on with {job.folder} at step {max(step, 0)}")
        return job.folder

    said = job.recipe.model_dump(mode="json", exclude_unset=True)
    data = {"fingerprint": rows.fingerprint, "ledger": rows.ledger}
    folder = new_folder(
        job.resolved.recipe,
        {
            "recipe.yaml": yaml.safe_dump(said, sort_keys=False, allow_unicode=True).encode(),
            "ledger.json": json.dumps(rows.ledger, indent=2).encode(),
            record.FILE: record.text(record.begin(job.resolved, job.device, data)),
        },
    )
    job.say(f"run folder: {folder}")
    return folder


def _trainer(
    job: Job,
    folder: Path,
    rows: "Rows",
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    chosen: "Kernels",
    watchers: "list[TrainerCallback]",
) -> "Trainer":
    from tunesmith.engine.arguments import arguments
    from tunesmith.engine.callbacks import AnswerQuestions, KeepBest, LastLine
    from tunesmith.engine.trainer import Trainer
    from tunesmith.generate.engine import Generator

    recipe = job.resolved.recipe

    def answer(trained: Any, question: str) -> str:
        with chosen.generating(trained):
            generator = Generator(trained, tokenizer)
            return generator.complete(
                [{"role": "user", "content": question}], max_new_tokens=recipe.eval.max_new_tokens
            )

    callbacks: list[TrainerCallback] = [LastLine(), AnswerQuestions(folder, recipe.eval.prompts, answer)]
    if recipe.eval.load_best_model_at_end or recipe.eval.early_stopping_patience:
        callbacks.append(KeepBest(recipe.eval.early_stopping_patience))
    per_step = recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps
    max_steps = -(-len(rows.train) // per_step)
    args = arguments(recipe, folder, max_steps, rows.held_out is not None)
    try:
        return Trainer(
            recipe,
            model,
            chosen.scorer,
            args,
            rows.train,
            rows.held_out,
            [*callbacks, *job.given.callbacks, *watchers],
            job.given.metrics or {},
            tokenizer,
        )
    except (RuntimeError, ValueError, ImportError) as error:  # a tracker that is not installed, mostly
        raise RecipeError(f"train: transformers says: {str(error).splitlines()[0]}") from error


def _save_final(trainer: "Trainer", tokenizer: "PreTrainedTokenizerBase", rows: "Rows", folder: Path) -> None:
    """Write `final/`: plain weights, tokenizer, template, and the tokens that end an answer."""
    from tunesmith.engine import checkpoint

    model = trainer.accelerator.unwrap_model(trainer.model)
    best = trainer.state.best_global_step
    if trainer.recipe.eval.load_best_model_at_end and best:
        checkpoint.load_weights(model, checkpoint.place(folder, best))
    base = model.get_base_model() if checkpoint.is_adapted(model) else model
    own = base.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *rows.end_tokens, *(own if isinstance(own, list) else [own])} - {None}
    base.generation_config.eos_token_id = sorted(ends)
    with checkpoint.atomic_folder(folder / FINAL) as final:
        checkpoint.save_weights(model, final)
        tokenizer.save_pretrained(final)
        base.generation_config.save_pretrained(final)


def _finish(job: Job, trainer: "Trainer", folder: Path) -> dict[str, Any]:
    """The picture, the record's last words, and what the user sees at the end."""
    from tunesmith import record
    from tunesmith.engine.plot import loss_picture

    lines = trainer.metrics_file.read()
    loss_picture(lines, folder / "loss.png")
    held_out = [line["eval_loss"] for line in lines if "eval_loss" in line]
    last = next(line for line in reversed(lines) if "loss" in line)
    summary: dict[str, Any] = {
        "folder": str(folder),
        "steps": trainer.state.global_step,
        "loss": last["loss"],
        "tokens": last["tokens"],
        "trained_tokens": last["trained_tokens"],
        "seconds": last["seconds"],
    }
    if held_out:
        summary |= {"eval_loss_before": held_out[0], "eval_loss_after": held_out[-1]}
    past = record.read(folder)
    record.write(folder, past | {"status": "finished", "summary": summary})
    for line in closing_words(folder, summary):
        job.say(line)
    return summary


def closing_words(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """What a run ends with: answers and held-out loss before and after, the picture, and what to try next."""
    from tunesmith.engine.metrics import MetricsFile

    words = []
    samples = MetricsFile(folder / "samples.jsonl").read()
    for question in dict.fromkeys(sample["prompt"] for sample in samples):
        answers = [sample["answer"] for sample in samples if sample["prompt"] == question]
        words += ["", f"Q      {question}", f"before {answers[0]}", f"after  {answers[-1]}"]
    words.append("")
    if "eval_loss_before" in summary:
        words.append(f"held-out loss: {summary['eval_loss_before']:.3f} -> {summary['eval_loss_after']:.3f}")
    words += [
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens in {summary['seconds']:.0f} s",
        f"loss picture: {folder / 'loss.png'}",
        "",
        "Next:",
        f"  tunesmith chat {folder}",
        f"  tunesmith export {folder} {folder}-merged type=merged",
        "  tunesmith recipes copy sft-lora my-recipe.yaml",
    ]
    return words
