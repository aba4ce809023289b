"""What a run is made of, each part said as it is made: the rows, the adapted model, its kernels, the trainer."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from tunesmith.adapted import Adapted, adapt, head_of, named, parameters, precision, trained_by_part
from tunesmith.defaults import HOSTS, Device, Resolved, with_values
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe
from tunesmith.recipe_parallel import problem_among
from tunesmith.referenced import is_once, reference_of, with_logps
from tunesmith.taught import with_teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from tunesmith.data.load import Rows
    from tunesmith.engine.context import Group
    from tunesmith.engine.kernels import Kernels
    from tunesmith.engine.reference import Reference
    from tunesmith.engine.scores import Scorer
    from tunesmith.engine.trainer import Metric, Trainer
    from tunesmith.engine.values import ValueScorer
    from tunesmith.engine.zero import Begun


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
    scorer: "Scorer | ValueScorer"  # the kernels', beside a teacher where the objective has one
    fingerprint: str | None  # of the weights that training starts from
    reference: "Reference | None" = None  # of an objective that has one, made in every step
    referred: str | None = None  # tells the weights of a reference of its own from others
    reference_seconds: float = 0.0  # that making log-probabilities of frozen models once took
    group: "Group | None" = None  # the processes that share rows with this one
    begun: "Begun | None" = None  # DeepSpeed, where it trains

    @property
    def teacher(self) -> str | None:
        """What tells the teacher's weights from others, where the objective has one."""
        teacher = self.scorer.teacher
        return None if teacher is None else teacher.identity


def speaker() -> Callable[[str], None]:
    """What says lines to people: on stderr, so that stdout is left to what a program reads.

    Of several processes that train together, one does.
    """
    from rich.console import Console

    from tunesmith.engine import ranks

    if ranks.own() > 0:
        return lambda line: None
    console = Console(stderr=True, highlight=False)
    return lambda line: console.print(line, markup=False, soft_wrap=True)


def _adapted(job: Job, until_the_end: contextlib.ExitStack) -> Adapted:
    """The adapted model, whose layers and attention are its own again at the end, whatever ends it."""
    from tunesmith.engine import state_files, zero

    recipe = job.resolved.recipe
    zero.refuse(recipe, job.device.type)
    swap = until_the_end.enter_context(state_files.folder(recipe, job.folder)) if zero.wanted(recipe) else None
    adapted = adapt(recipe, job.device.type, job.given.model, swap)
    until_the_end.callback(adapted.kernels.restore, adapted.model)
    alpha = recipe.train.neftune_noise_alpha
    if alpha is not None:
        from tunesmith.engine import noise

        until_the_end.callback(noise.add(adapted.model, alpha))
    return adapted


def fitted(job: Job, until_the_end: contextlib.ExitStack) -> tuple[Job, Adapted | None]:
    """The job with what the model decides: what starts a decoder's answer, what processes share, `row_tokens: auto`.

    A run that goes on finds them in its record. Rows are packed to fit beside the model, so where they are, it comes
    first. What the model's config alone refuses is refused before either.
    """
    from tunesmith.engine import encoder_decoder, memory, ranks
    from tunesmith.planner.shapes import without_numbers

    recipe, derived = job.resolved.recipe, job.resolved.derived
    if job.given.model is None:
        recipe.adapter.refuse_names(lambda: without_numbers(recipe))
    found = encoder_decoder.derived(recipe, job.given.model) | named(recipe)
    found |= _shared(recipe, job)
    recipe, derived = with_values(recipe, found), derived | found
    reason = problem_among(recipe, ranks.number())
    if reason is not None:
        raise RecipeError(reason)
    job = replace(job, resolved=Resolved(recipe, derived))
    if recipe.train.row_tokens != "auto":
        return job, None
    adapted = _adapted(job, until_the_end)
    with precision(recipe, job.device.type):
        fitting = memory.choose_row(adapted.model, adapted.kernels.scorer, recipe)
    chosen = {"train.row_tokens": min(ranks.everyones(fitting))}
    return replace(job, resolved=Resolved(with_values(recipe, chosen), derived | chosen)), adapted


def _shared(recipe: Recipe, job: Job) -> dict[str, Any]:
    """What several processes share, where the recipe leaves it to the plan; all of them find the same."""
    from tunesmith.engine import ranks
    from tunesmith.engine.device import free_memory_bytes
    from tunesmith.planner import automatic

    if ranks.number() == 1 or recipe.parallel.strategy != "auto":
        return {}
    own = free_memory_bytes(job.device.type) // (ranks.on_this_machine() if job.device.type in HOSTS else 1)
    config = job.given.model and job.given.model.config
    chosen, why = automatic.strategy(recipe, job.device, min(ranks.everyones(own)), ranks.number(), config)
    job.say(f"parallel: auto takes {chosen}: {why}")
    return {"parallel.strategy": chosen}


def load(job: Job, start: Path | None, adapted: Adapted | None, until_the_end: contextlib.ExitStack) -> Loaded:
    """The rows and the adapted model, each said; rows that are streamed, from a checkpoint on."""
    from tunesmith.data import sides
    from tunesmith.data.load import context_problem, load_rows, longest_sequence
    from tunesmith.engine import checkpoint, context, ranks, rope, values
    from tunesmith.engine.arguments import look_for_trackers
    from tunesmith.engine.model import base_of, load_tokenizer, with_padding

    recipe, say = job.resolved.recipe, job.say
    head = head_of(recipe)  # what it refuses is refused before rows are read
    for option, value in job.resolved.derived.items():
        say(f"derived: {option} = {value}")
    look_for_trackers(recipe.train.report_to)
    if job.given.tokenizer is not None and recipe.model.added():
        first = next(iter(recipe.model.added()))
        raise RecipeError(
            f"model.new_tokens: a script brought the tokenizer: add {first!r} to it, and leave it out here"
        )
    tokenizer = job.given.tokenizer or load_tokenizer(recipe.model)
    tokenizer = sides.prepared(recipe.data.template, recipe.objective, tokenizer)
    tokenizer = tokenizer if head is None else with_padding(tokenizer)
    point = checkpoint.read_state(start)["counters"]["stream"] if start and recipe.data.streaming else None
    with ranks.first():
        rows = load_rows(recipe, tokenizer, job.given.rows, point, context.groups(recipe))
    until_the_end.enter_context(contextlib.closing(rows))
    for line in rows.lines:
        say(line)
    adapted = adapted or _adapted(job, until_the_end)
    model = adapted.model
    _refuse_rows(recipe, adapted, rows)
    trained, total = parameters(model).values()
    config = base_of(model).config
    rope.refuse_longer(config, longest_sequence(rows.ledger))
    problem = context_problem(rows.ledger, rope.context_of(config), recipe.data.position_skipping or 0)
    if recipe.model.rope_scaling.rope_type is not None:
        tokenizer.model_max_length = rope.context_of(config)
    filled = values.account(adapted.kernels.scorer, rows.train)
    if problem and (filled or type(recipe.objective).encodes):
        raise RecipeError(problem)  # positions of encoders are learned one by one: there are no more
    rows.ledger["train"] |= filled
    reference, said = reference_of(recipe, job.device.type, adapted, tokenizer)
    for line in (
        *adapted.notes,
        *said,
        *(f"filled up: {share:.1%} of the places in batches are tokens" for share in filled.values()),
        *([problem] if problem else []),
        f"parameters: {trained:,} of {total:,} trained ({trained / total:.2%})",
        "trained by part: " + ", ".join(f"{part} {size:,}" for part, size in trained_by_part(model).items()),
        f"device: {job.device.type} ({job.device.name})",
    ):
        say(line)
    started = monotonic()
    referred = None if reference is None or recipe.reference.model is None else reference.identity
    if reference is not None and is_once(recipe):
        rows, reference = with_logps(recipe, reference, model, rows, job.device.type, say), None
    rows, scorer = with_teacher(recipe, adapted, rows, tokenizer, job.device.type, say)
    seconds = monotonic() - started
    told = (adapted.fingerprint, reference, referred, seconds, adapted.group, adapted.begun)
    return Loaded(model, tokenizer, rows, adapted.kernels, scorer, *told)


def _refuse_rows(recipe: Recipe, adapted: Adapted, rows: "Rows") -> None:
    """Raise RecipeError where rows ask for what the model's attention, or one whose weights lie in parts, cannot do."""
    from tunesmith.engine import shared_out
    from tunesmith.engine.model import base_of
    from tunesmith.engine.values import ValueScorer

    group, scorer = recipe.train.shifted_sparse_attention, adapted.kernels.scorer
    if shared_out.is_shared(adapted.model) and isinstance(scorer, ValueScorer) and not scorer.packed:
        raise RecipeError(
            f"parallel.strategy={recipe.parallel.strategy}: {type(base_of(adapted.model)).__name__} takes as many "
            "passes for a row as its sequences have lengths, and processes that share it would wait for each other: "
            "use ddp"
        )
    if any(part.get("shared_tokens") for part in rows.ledger.values()):
        if not adapted.kernels.shares:
            raise RecipeError(
                f"{type(base_of(adapted.model)).__name__} does not run packed attention, without which sequences "
                "cannot share a beginning: set data.shared_prefix=false"
            )
        if group is not None:
            raise RecipeError(
                f"train.shifted_sparse_attention={group} cuts sequences into groups, and here some share a beginning: "
                "set data.shared_prefix=false"
            )
    if recipe.data.position_skipping is not None and not adapted.kernels.scorer.packed:
        raise RecipeError(
            f"data.position_skipping={recipe.data.position_skipping}: this model does not run packed attention, and "
            "transformers' own tells sequences of a row apart by their positions: leave it out"
        )


def make_trainer(
    job: Job,
    folder: Path,
    loaded: Loaded,
    watchers: "Sequence[TrainerCallback]",
    kind: "type[Trainer] | None" = None,
) -> "Trainer":
    """The trainer of a run in a folder, watched by some callbacks; `kind` is one that does more than the trainer.

    Raises:
        RecipeError: transformers refuses a value.
    """
    from tunesmith.engine import context, ranks
    from tunesmith.engine.arguments import arguments
    from tunesmith.engine.callbacks import AnswerQuestions, KeepBest, LastLine
    from tunesmith.generate.alone import Alone
    from tunesmith.generate.engine import Generator

    recipe, rows = job.resolved.recipe, loaded.rows

    def answer(trained: Any, question: str) -> str:
        with loaded.kernels.generating(trained):
            generator = Generator(trained, loaded.tokenizer, Alone(trained))
            return generator.complete(
                [{"role": "user", "content": question}], max_new_tokens=recipe.eval.max_new_tokens
            )

    callbacks: list[TrainerCallback] = [LastLine(), AnswerQuestions(folder, recipe.eval.prompts, answer)]
    if recipe.eval.load_best_model_at_end or recipe.eval.early_stopping_patience:
        callbacks.append(KeepBest(recipe.eval.early_stopping_patience, job.say))
    per_step = recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps
    if ranks.number() > 1:
        rows = context.shared(rows.shared_by(context.groups(recipe), recipe), recipe)
    max_steps = -(-len(rows.train) // (per_step * ranks.number()))
    scorer, reference = context.in_pieces(loaded.group, loaded.scorer, loaded.reference)
    args = arguments(recipe, folder, max_steps, rows.held_out is not None)
    try:
        return (kind or _trainer(loaded))(
            recipe,
            loaded.model,
            scorer,
            args,
            rows.train,
            rows.held_out,
            reference,
            [*callbacks, *job.given.callbacks, *watchers],
            job.given.metrics or {},
            loaded.tokenizer,
        )
    except RecipeError:
        raise
    except (RuntimeError, ValueError, ImportError) as error:  # a tracker that is not installed, mostly
        raise RecipeError(f"train: transformers says: {str(error).splitlines()[0]}") from error


def _trainer(loaded: Loaded) -> "Callable[..., Trainer]":
    """What trains: with DeepSpeed, where that was put around the model."""
    if loaded.begun is None:
        from tunesmith.engine.trainer import Trainer

        return Trainer
    from tunesmith.engine.zero_trainer import ZeroTrainer

    return partial(ZeroTrainer, loaded.begun)
