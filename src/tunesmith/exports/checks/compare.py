"""How an export is written and verified: beside its place, then compared with the run, then renamed.

Compared are what stands beside the weights (chat template, tokens that end an answer, tokenizer), the greedy answers
and logits of a few prompts, and the files with what was written into them.

Letters: K greedy tokens of an answer, V vocabulary.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith import atomic
from tunesmith.adapters._prompts import TYPES, UNMERGED
from tunesmith.engine import checkpoint
from tunesmith.errors import RunError
from tunesmith.exports.checks.manners import Manners, difference, manners
from tunesmith.exports.checks.signature import Digests, damage, signed
from tunesmith.exports.merging.paged import page
from tunesmith.exports.merging.tensors import files_of
from tunesmith.generate.alone import logits_of
from tunesmith.generate.engine import Generator, greedy_ids
from tunesmith.generate.load import ADAPTER, RECIPE, has_weights, is_adapter, load, locate
from tunesmith.recipe import Dtype
from tunesmith.recipe_text import parse
from tunesmith.recipe_train import DeviceName
from tunesmith.types import Report

TOKENS = 32  # greedy tokens compared on each prompt
MOST_PROMPTS = 5
PROMPTS = (
    "Who are you, and what can you do?",
    "Write two sentences about a river that reaches the sea.",
    "What is 17 + 25? Explain each step.",
)
# Of the largest logit. Merges of a 0.5B model were seen to differ by 1e-6 (float32) and 1e-2 (bfloat16) of it.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Unlike(RunError):
    """What was written is not as its run is: in what."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt, the run's greedy answer to it, and what the run gave each next token."""

    question: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: torch.Tensor  # [K, V] float32, on the CPU


@dataclass(frozen=True, slots=True)
class Reference:
    """What an export is compared with: what a run answers, and what stands beside its weights."""

    probes: tuple[Probe, ...]
    manners: Manners
    dtype: torch.dtype  # that the run was asked in

    @property
    def largest(self) -> float:
        """The largest logit."""
        return max(one.logits.abs().max().item() for one in self.probes)


def weights_of(run: Path) -> str:
    """The folder of a run's final weights, found whole. Raises RunError or ModelError."""
    place = locate(str(run))
    if (Path(place) / checkpoint.MANIFEST).is_file() and (problem := checkpoint.damage(Path(place))):
        raise RunError(f"{run} cannot be exported: {problem}")
    if not has_weights(Path(place)):
        raise RunError(f"{run} is no run folder, so there is nothing of a run to export")
    return place


def refuse_unmerged(run: Path, place: str) -> None:
    """Raise RunError when what was trained cannot be put into a model's weights, before anything is loaded."""
    if is_adapter(place):
        config = json.loads((Path(place) / ADAPTER).read_text(encoding="utf-8"))
        if config["peft_type"] in TYPES:
            raise RunError(f"{run} cannot be merged: {UNMERGED}")


def questions(run: Path) -> tuple[str, ...]:
    """What the run and its export are both asked: the recipe's own prompts, or three fixed ones."""
    recipe = run / RECIPE
    tree = parse(recipe.read_text(encoding="utf-8"), str(recipe)) if recipe.is_file() else {}
    return tuple((tree.get("eval") or {}).get("prompts") or PROMPTS)[:MOST_PROMPTS]


def reference(generator: Generator, asked: Sequence[str]) -> Reference:
    """What a run answers and how it is talked to: the reference of its export."""
    probes = []
    for question in asked:
        prompt = generator.prompt([{"role": "user", "content": question}], TOKENS).ids
        tokens = greedy_ids(generator.model, prompt, TOKENS)
        probes.append(Probe(question, prompt, tokens, logits_of(generator.model, prompt, tokens)))
    return Reference(tuple(probes), manners(generator.model, generator.tokenizer), generator.model.dtype)


def refuse_taken(out: Path) -> None:
    """Raise RunError where an export's name is taken."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is {'not empty' if out.is_dir() else 'a file'}: choose another folder")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that takes its name when the block ends well, and is removed when it does not.

    Raises:
        RunError: the name is taken by a file or by a folder that holds something, or there is no room for the export.
    """
    refuse_taken(out)
    work = out.parent / f".{out.name}.{os.getpid()}"
    work.mkdir(parents=True)
    with atomic.room(out, RunError, "Make room, or choose another folder"), atomic.folder(out, work):
        try:
            yield work
        except Unlike as error:
            raise RunError(f"{out} was not written: {error}") from error


@contextlib.contextmanager
def checking(out: Path) -> Iterator[Digests]:
    """What the files of an export were, to compare it with its run again. Raises RunError where it is not as that."""
    _, sealed = signed(out)
    try:
        with watched(out, sealed):
            yield sealed
    except Unlike as error:
        raise RunError(f"{out} is not as its run is: {error}") from error


def compared(
    run: Reference, device: DeviceName, folder: Path, out: Path, dtype: Dtype | None, share: float | None = None
) -> Report:
    """How what was written, loaded with plain transformers or peft, compares with the run.

    `share` of the largest logit is the tolerance, where it is another than that of the precision.

    Raises RunError: what stands beside its weights is other than the run's.
    """
    generator = Generator(*load(str(folder), device, dtype))
    page(generator.model, files_of(folder))
    refuse_difference(run.manners, manners(generator.model, generator.tokenizer))
    return answers(generator.model, run, out, TOLERANCE[generator.model.dtype] if share is None else share)


def refuse_difference(run: Manners, export: Manners) -> None:
    """Raise RunError where what stands beside the weights of an export is not what the run has."""
    problem = difference(run, export)
    if problem is not None:
        raise Unlike(problem)


def answers(model: Any, run: Reference, out: Path, share: float) -> Report:
    """How a model answers where the run does; `share` of the largest logit is the tolerance."""
    return said_by(
        lambda prompt: greedy_ids(model, prompt, TOKENS),
        lambda prompt, tokens: logits_of(model, prompt, tokens),
        run,
        out,
        share,
    )


def said_by(
    greedy: Callable[[Sequence[int]], Sequence[int]],
    logits_at: Callable[[Sequence[int], Sequence[int]], torch.Tensor],
    run: Reference,
    out: Path,
    share: float,
) -> Report:
    """How what gives the greedy tokens after a prompt, and the logits of an answer's tokens, answers.

    Where the run's tokens, read at once, are each the likeliest, they are the greedy answer: it is made token by token
    only where one is not.
    """
    differences, partings, divergences = [], [], []
    for one in run.probes:
        logits = logits_at(one.prompt, one.tokens)
        tokens = tuple(logits.argmax(-1).tolist())
        if tokens != one.tokens:
            tokens = tuple(greedy(one.prompt))
        differences.append((logits - one.logits).abs().max())
        own, other = one.logits.log_softmax(-1), logits.log_softmax(-1)  # [K, V]
        divergences.append((own.exp() * (own - other)).sum(-1).mean())
        if tokens != one.tokens:
            partings.append(_lead(one, tokens))
    largest = torch.stack(differences).max().item()  # NaN stays NaN, which no tolerance allows
    tolerance, divergence = share * run.largest, torch.stack(divergences).mean().item()
    return Report(
        out, not partings, len(run.probes), largest, tolerance, tuple(partings), divergence=max(divergence, 0.0)
    )


def judged(report: Report) -> Report:
    """A report of an export that answers as its run. Raises RunError for another."""
    if not report.passed and report.compared == "values":
        raise Unlike(
            f"it does not say what the run does: the largest difference of a value is "
            f"{report.largest_logit_difference:.3g} ({report.tolerance:.3g} is allowed)"
        )
    if not report.passed:
        raise Unlike(
            f"it does not answer as the run does: the largest logit difference is "
            f"{report.largest_logit_difference:.3g} ({report.tolerance:.3g} is allowed), and on "
            f"{len(report.partings)} of {report.prompts} prompts its greedy tokens are others"
        )
    return report


@contextlib.contextmanager
def watched(folder: Path, sealed: Digests) -> Iterator[None]:
    """Name the file that is not as it was written, where one is not, beside what came of it in this block."""
    try:
        yield
    except Exception as error:
        problem = damage(folder, sealed)
        if problem is None:
            raise
        raise Unlike(f"{error}; {problem}" if isinstance(error, Unlike) else problem) from error
    problem = damage(folder, sealed)
    if problem is not None:
        raise Unlike(problem)


def _lead(one: Probe, tokens: Sequence[int]) -> float:
    """By how much the run preferred its own token where the other answer parts from its own."""
    at = next(place for place, pair in enumerate(zip(one.tokens, tokens, strict=True)) if pair[0] != pair[1])
    return (one.logits[at, one.tokens[at]] - one.logits[at, tokens[at]]).item()
