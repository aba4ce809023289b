"""The model that a student learns from: asked in every step, or its likeliest words made once and kept with the rows.

Letters: N asked tokens, K likeliest words.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import numpy as np
import torch

from tunesmith.data.batch import PackedRows
from tunesmith.data.kept import open_file
from tunesmith.data.prepare import cache_folder
from tunesmith.data.taught import FOLDER, Taught, firsts_of, missing, none, record
from tunesmith.engine import ranks
from tunesmith.engine.divergence import AllWords, TopWords, divergences, first_words
from tunesmith.engine.head import Means, Pairs
from tunesmith.engine.reference import fill
from tunesmith.engine.scores import Scorer, asked_of
from tunesmith.recipe import Recipe
from tunesmith.types import Batch, Divergence


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen model, and how far from it a student's words are measured.

    `model` and `scorer` are None where its likeliest words come with the batch. `words` are those that both heads have:
    some heads have rows more than there are words.
    """

    model: Any
    scorer: Scorer | None
    how: Divergence
    words: int
    identity: str | None = None  # tells its weights from others

    @torch.no_grad()
    def told(self, batch: Batch) -> AllWords | TopWords:
        """What it says at the asked positions of a batch."""
        if self.scorer is None:
            assert batch.teacher_words is not None and batch.teacher_logps is not None, "the rows have them"
            return TopWords(batch.teacher_words, batch.teacher_logps)
        pairs, bias = self.scorer.entering(self.scorer.run(self.model, batch, asked_of(batch)))
        with torch.autocast(batch.weight.device.type, enabled=False):
            every = AllWords.of(pairs, bias, self.scorer.means, self.words, self.how.temperature)
            return every if self.how.top_k is None else every.top(self.how.top_k)

    def compare(self, pairs: Pairs, bias: torch.Tensor | None, means: Means, told: AllWords | TopWords) -> torch.Tensor:
        """How far from what it told a student's words are, from what enters the student's head: float32 [N]."""
        return divergences(*first_words(pairs, bias, self.words), means, told, self.how)


def stored(
    recipe: Recipe, teacher: Teacher, rows: PackedRows, device: torch.device, say: Callable[[str], None]
) -> PackedRows:
    """The rows with the teacher's likeliest words, made where no earlier run made them.

    Raises:
        DataError: they cannot be kept.
    """
    samples, k = rows.store, teacher.how.top_k
    assert k is not None, "the recipe refuses to keep all words"
    wanted = np.unique(rows.plan.pieces[:, 0])
    key = {
        "samples": samples.digest,
        "teacher": teacher.identity,
        "words": teacher.words,
        "top_k": k,
        "temperature": teacher.how.temperature,
        "bf16": recipe.train.bf16,
        "fp16": recipe.train.fp16,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    firsts = firsts_of(samples)
    with ranks.first():
        kept = open_file(cache_folder(recipe.data.cache_dir) / FOLDER / name, none(k), int(firsts[-1]), say)
    values = kept.values
    needed = missing(firsts, wanted, values)
    if any(ranks.everyones(len(needed))):
        started = monotonic()

        def made(batch: Batch) -> np.ndarray:
            told = teacher.told(batch)
            assert isinstance(told, TopWords), "k is not None"
            found = np.empty(len(told.words), record(k))
            found["words"], found["logps"] = told.words.cpu().numpy(), told.logps.cpu().numpy()
            return found

        placed = Taught(samples, np.arange(firsts[-1]), firsts)
        tokens = fill(recipe, placed, needed, kept, made, device, lambda: missing(firsts, wanted, values))
        said = f"{len(needed):,} samples, {tokens:,} tokens, in {monotonic() - started:,.1f} s"
        say(f"teacher: its {k} likeliest words were made once: {said}; {values.nbytes / 1e6:,.1f} MB are kept")
    else:
        say(f"teacher: the {k} likeliest words of {len(wanted):,} samples were made by an earlier run")
    return replace(rows, store=Taught(samples, values, firsts))
