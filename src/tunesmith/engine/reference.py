"""The frozen model that preferences are measured from: the trained one without its adapter, a copy, or another one.

Its log-probabilities are made once before training and kept with the rendered rows, or in every step.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import numpy as np
import torch

from tunesmith.data.batch import PackedRows, WholeSet, join, lay, pack
from tunesmith.data.kept import Kept, open_file
from tunesmith.data.prepare import cache_folder
from tunesmith.data.reference import FOLDER, NONE, Referenced, missing, places
from tunesmith.engine import multi_adapter, ranks, shared_out
from tunesmith.engine.model import is_adapted
from tunesmith.engine.scores import asked_of
from tunesmith.recipe import Recipe
from tunesmith.types import Batch, Scores

FLUSH_SECONDS = 30  # between two times that what was made goes to the disk


@dataclass(frozen=True, eq=False)
class Reference:
    """A frozen model, and how its log-probabilities are computed.

    `model` is None where it is the trained model with its adapter switched off, or with another one (`adapter`) on.
    """

    model: Any
    scorer: Callable[..., Scores]
    identity: str | None  # tells its weights from others; None: they are not known, and nothing is kept
    adapter: str | None = None  # the name of an adapter on the trained model

    @torch.no_grad()
    def logps(self, trained: Any, batch: Batch, unwrapped: Any | None = None) -> torch.Tensor:
        """The log-probability of each asked target: [1, T] float32.

        `trained` is the model in training, perhaps wrapped for distribution around `unwrapped`.
        """
        model = trained if self.model is None else self.model
        inner = (trained if unwrapped is None else unwrapped) if self.model is None else self.model
        with frozen(inner, self.adapter) if self.model is None else nullcontext():  # its own adapter is part of it
            return self.scorer(model, batch).logps


@contextmanager
def frozen(model: Any, adapter: str | None = None) -> Iterator[None]:
    """The model without dropout, and as it was before training: without its adapter, or with a named one.

    Afterwards the same weights are trained as before: peft would train all of the adapter that it puts back.
    """
    was_training = model.training
    trained = [(one, one.requires_grad) for one in model.parameters()]
    model.eval()
    try:
        with multi_adapter.using(model, adapter) if is_adapted(model) else nullcontext():
            yield
    finally:
        model.train(was_training)
        for one, wants in trained:
            one.requires_grad = wants


def stored(
    recipe: Recipe,
    reference: Reference,
    trained: Any,
    rows: PackedRows,
    say: Callable[[str], None],
) -> PackedRows:
    """The rows with the reference's log-probabilities of their tokens, made where no earlier run made them.

    Raises:
        DataError: they cannot be kept.
    """
    samples = rows.store
    wanted = np.unique(rows.plan.pieces[:, 0])
    size = int(samples.tokens().sum())
    if reference.identity is None:
        kept = Kept(np.full(size, NONE))
    else:
        key = {"samples": samples.digest, "model": reference.identity, "recipe": _decisive(recipe)}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        with ranks.first():
            kept = open_file(cache_folder(recipe.data.cache_dir) / FOLDER / name, NONE, size, say)
    needed = missing(samples, wanted, kept.values)
    if any(ranks.everyones(len(needed))):
        started = monotonic()
        device = next(trained.parameters()).device

        def made(batch: Batch) -> np.ndarray:
            return reference.logps(trained, batch)[0, asked_of(batch)].cpu().numpy()

        def lacking() -> np.ndarray:
            return missing(samples, wanted, kept.values)

        together = shared_out.is_shared(trained)
        each = recipe.parallel.tensor if ranks.number() > 1 else 1
        tokens = fill(recipe, places(samples), needed, kept, made, device, lacking, together, each)
        said = f"{len(needed):,} samples, {tokens:,} tokens, in {monotonic() - started:,.1f} s"
        say(f"reference: its log-probabilities were made once: {said}")
    else:
        say(f"reference: the log-probabilities of {len(wanted):,} samples were made by an earlier run")
    return replace(rows, store=Referenced(samples, kept.values))


def _decisive(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe changes the numbers of a model whose weights are known."""
    model, train = recipe.model, recipe.train
    return {"dtype": model.dtype, "frozen_dtype": model.frozen_dtype, "bf16": train.bf16, "fp16": train.fp16}


def fill(
    recipe: Recipe,
    placed: WholeSet,
    needed: np.ndarray,
    kept: Kept,
    made: Callable[[Batch], np.ndarray],
    device: torch.device,
    lacking: Callable[[], np.ndarray],
    together: bool = False,
    each: int = 1,
) -> int:
    """Write what is made of some samples to their places among the kept, a share by each rank; the tokens worked on.

    `made` gives a value for each asked token of a batch; in `placed`, their place is what they have for that value.
    What a rank then does not find (`lacking`: values that are not kept, or on another machine's disk) it makes itself.
    `together`: a pass of one rank needs one of every other; it is of the same samples for every `each` ranks, one
    after the other, which take a share together.
    """

    def make(some: np.ndarray) -> int:
        most = ranks.largest(len(some)) if together else len(some)
        if not most:
            return 0
        plan = pack(recipe, placed.lengths(), some if len(some) else needed[:1], seed=None)
        tokens, flushed = 0, monotonic()
        for number in range(ranks.largest(len(plan)) if together else len(plan)):
            row = lay(placed, plan.row(min(number, len(plan) - 1)))  # the last one again, while others have more
            place = row.pop("teacher") if "teacher" in row else row.pop("reference")[row["weight"].nonzero()[0]]  # [N]
            fields = join([row])
            batch = Batch(**{name: _on(value, device) for name, value in fields.items()})
            kept.values[place] = made(batch)
            tokens += batch.input_ids.numel()
            if monotonic() - flushed > FLUSH_SECONDS:
                kept.flush()
                flushed = monotonic()
        return tokens

    own, number, needed = ranks.own() // each, ranks.number() // each, _anyones(needed, each)
    tokens = sum(ranks.everyones(make(needed[own::number]))[::each])
    tokens += make(_anyones(lacking(), each) if ranks.number() > 1 else needed[:0])
    kept.flush()
    return tokens


def _anyones(samples: np.ndarray, each: int) -> np.ndarray:
    """The samples of this rank; where every `each` ranks make a pass together, those of any of them all."""
    return samples if each == 1 else np.unique(np.concatenate(ranks.everyones(samples)))


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
