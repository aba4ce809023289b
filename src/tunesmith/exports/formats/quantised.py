"""A merged model in few bits, as transformers loads it, and what the rounding costs.

Letters: K tokens of an answer, V vocabulary.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.component import pick
from tunesmith.data.prompt import prompt_ids
from tunesmith.engine.device import choose
from tunesmith.engine.model import load_model, without_progress_bar
from tunesmith.errors import RunError, TunesmithError
from tunesmith.exports.checks.compare import (
    Reference,
    answers,
    checking,
    judged,
    new_folder,
    refuse_difference,
    refuse_unmerged,
    watched,
    weights_of,
)
from tunesmith.exports.checks.manners import manners
from tunesmith.exports.checks.signature import seal, sign
from tunesmith.exports.merged import Merged
from tunesmith.generate.alone import logits_of
from tunesmith.generate.load import load, stored_head
from tunesmith.prediction.rows import Asked, held_out
from tunesmith.recipe import Model
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Export, Quantization
from tunesmith.types import Report

MOST_ROWS = 64  # held-out rows that perplexity is taken of
MOST_TOKENS = 1024  # of a row
Hold = Callable[[str, str, Path], None]  # a folder with a merged model, the kind of device, the folder to write


class Cost:
    """The perplexity of a run's held-out answers, for one model and then for another."""

    def __init__(self, run: Path, tokenizer: Any) -> None:
        self.before, self.reason = math.nan, ""
        self.rows = self._rows(run, tokenizer)

    def _rows(self, run: Path, tokenizer: Any) -> list[tuple[list[int], tuple[int, ...]]]:
        try:
            found = held_out(run, tokenizer, lambda line: None).asked[:MOST_ROWS]
        except TunesmithError as error:  # the export is as good, and only its price is not known
            self.reason = str(error)
            return []
        rows = [(_prompt(tokenizer, one), one.label_ids) for one in found if one.label_ids]
        return [row for row in rows if row[0] and len(row[0]) + len(row[1]) <= MOST_TOKENS]

    def of(self, model: Any) -> float:
        """The perplexity of the answers; NaN where there is none."""
        lost, tokens = 0.0, 0
        for prompt, label in self.rows:
            logps = logits_of(model, prompt, label).log_softmax(-1)  # [K, V]
            lost -= logps[torch.arange(len(label)), list(label)].double().sum().item()
            tokens += len(label)
        return math.exp(lost / tokens) if tokens else math.nan

    def note(self, after: float) -> str:
        """Both, in words."""
        if not self.rows:
            return f"perplexity was not compared: {self.reason or 'no held-out row is short enough'}"
        rows = f"{len(self.rows)} held-out answers"
        return (
            f"perplexity of {rows}: {self.before:.4g} of the run, {after:.4g} of this ({after / self.before:.3f} times)"
        )


def _prompt(tokenizer: Any, one: Asked) -> list[int]:
    return prompt_ids(tokenizer, one.messages, one.tools)


def in_words(words: str | dict[str, str], device: DeviceName) -> Hold:
    """What writes a merged model as a quantization's `words` say. Raises MissingExtra, before anything is loaded."""
    held = pick(Quantization, words)
    assert isinstance(held, Quantization)
    held.config(torch.float32, choose(device).type)

    def hold(room: str, kind: str, folder: Path) -> None:
        model: Any = load_model(Model(path=room, quantization=held), kind)
        with without_progress_bar():
            model.save_pretrained(folder)

    return hold


def write(export: Export, hold: Hold, device: DeviceName, share: float, run: Path, out: Path) -> Report:
    """Merge a run, and have it written in few bits.

    `share` of the largest logit is what it may cost.

    Raises:
        MissingExtra: a package is not installed.
        RunError: the run is not finished, is damaged, or cannot be merged; `out` holds something; or what was written
            is not as the run is.
    """
    place = weights_of(run)
    refuse(run, place)
    merged = Merged(device=device)
    with new_folder(out) as folder:
        opened, plan = merged.opened(run, place)
        assert opened.reference is not None, "a run that says words was asked"
        reference, cost = opened.reference, Cost(run, opened.tokenizer)
        cost.before = cost.of(opened.model)
        with tempfile.TemporaryDirectory(dir=folder.parent) as room:
            merged.beside(opened, folder)
            merged.fill(opened, plan, place, Path(room))
            opened.closed()
            hold(room, choose(device).type, folder)
        sealed = seal(folder)
        with watched(folder, sealed):
            report = _compared(folder, out, device, reference, cost, share)
        return sign(folder, export, sealed, report)


def check(device: DeviceName, share: float, run: Path, out: Path) -> Report:
    """Compare a model in few bits with its run again. Raises RunError where it is another."""
    place = weights_of(run)
    with checking(out):
        opened, _ = Merged(device=device).opened(run, place)
        assert opened.reference is not None, "a run that says words was asked"
        reference, cost = opened.reference, Cost(run, opened.tokenizer)
        cost.before = cost.of(opened.model)
        opened.closed()
        return _compared(out, out, device, reference, cost, share)


def refuse(run: Path, place: str) -> None:
    """Raise RunError for a run that says values, or that cannot be merged."""
    if stored_head(place) is not None:
        raise RunError(f"{run} says rewards or classes, whose head needs its precision: use type=merged")
    refuse_unmerged(run, place)


def _compared(folder: Path, out: Path, device: DeviceName, reference: Reference, cost: Cost, share: float) -> Report:
    model, tokenizer = load(str(folder), device)
    refuse_difference(reference.manners, manners(model, tokenizer))
    report = judged(answers(model, reference, out, share))
    return replace(report, notes=(cost.note(cost.of(model)),))
