"""How an export is written and verified: beside its place, then compared with the run, then renamed.

Letters: K greedy tokens of an answer, V vocabulary.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith import atomic
from tunesmith.adapters._prompts import TYPES, UNMERGED
from tunesmith.engine import checkpoint
from tunesmith.errors import RunError
from tunesmith.exports._paged import page
from tunesmith.exports._tensors import files_of
from tunesmith.generate.alone import logits_of
from tunesmith.generate.engine import Generator, greedy_ids
from tunesmith.generate.load import ADAPTER, RECIPE, has_weights, is_adapter, load, locate
from tunesmith.recipe import Dtype
from tunesmith.recipe_text import parse
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Report

TOKENS = 32  # greedy tokens compared on each prompt
MOST_PROMPTS = 5
PROMPTS = (
    "Who are you, and what can you do?",
    "Write two sentences about a river that reaches the sea.",
    "What is 17 + 25? Explain each step.",
)
# Of the largest logit. Merges of a 0.5B model were seen to differ by 1e-6 (float32) and 1e-2 (bfloat16) of it.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt, the run's greedy answer to it, and what the run gave each next token."""

    question: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: torch.Tensor  # [K, V] float32, on the CPU


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


def probe(generator: Generator, asked: Sequence[str]) -> list[Probe]:
    """What a run answers: the reference of its export."""
    probes = []
    for question in asked:
        prompt = generator.prompt([{"role": "user", "content": question}], TOKENS).ids
        tokens = greedy_ids(generator.model, prompt, TOKENS)
        probes.append(Probe(question, prompt, tokens, logits_of(generator.model, prompt, tokens)))
    return probes


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that takes its name when the block ends well, and is removed when it does not.

    Raises:
        RunError: the name is taken by a file or by a folder that holds something, or there is no room for the export.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is {'not empty' if out.is_dir() else 'a file'}: choose another folder")
    work = out.parent / f".{out.name}.{os.getpid()}"
    work.mkdir(parents=True)
    with atomic.room(out, RunError, "Make room, or choose another folder"), atomic.folder(out, work):
        yield work


def verify(folder: Path, probes: Sequence[Probe], device: DeviceName, dtype: Dtype | None, out: Path) -> Report:
    """Load what was written with plain transformers or peft, and compare it with what the run answered.

    Raises:
        RunError: it differs by more than its precision explains.
    """
    generator = Generator(*load(str(folder), device, dtype))
    page(generator.model, files_of(folder))
    differences, partings = [], []
    for one in probes:
        tokens = greedy_ids(generator.model, one.prompt, TOKENS)
        differences.append((logits_of(generator.model, one.prompt, one.tokens) - one.logits).abs().max())
        if tokens != one.tokens:
            partings.append(_lead(one, tokens))
    largest = torch.stack(differences).max().item()  # NaN stays NaN, which no tolerance allows
    tolerance = TOLERANCE[generator.model.dtype] * max(one.logits.abs().max().item() for one in probes)
    report = Report(out, not partings, len(probes), largest, tolerance, tuple(partings))
    if not report.passed:
        raise RunError(
            f"{out} was not written, because it does not answer as the run does: the largest logit "
            f"difference is {largest:.3g} ({tolerance:.3g} is allowed), and on {len(partings)} of "
            f"{len(probes)} prompts its greedy tokens are others"
        )
    return report


def _lead(one: Probe, tokens: Sequence[int]) -> float:
    """By how much the run preferred its own token where the other answer parts from its own."""
    at = next(place for place, pair in enumerate(zip(one.tokens, tokens, strict=True)) if pair[0] != pair[1])
    return (one.logits[at, one.tokens[at]] - one.logits[at, tokens[at]]).item()
