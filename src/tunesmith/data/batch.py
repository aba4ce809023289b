"""Packed rows as a dataset, and rows joined to a micro-batch."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from tunesmith.data import balance
from tunesmith.data.pack import Plan, offsets_of, padded_places, plan_documents, plan_epoch, plan_padded
from tunesmith.data.skip import Skips
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe
from tunesmith.types import Tokens

PackedRow = dict[str, np.ndarray]  # named as in types.Batch, without the first axis


class Samples(Protocol):
    """Rendered samples by number: a store, or the block of a stream."""

    @property
    def label(self) -> np.ndarray:
        """The labels of the samples, NaN where there is none: [M]."""

    def __len__(self) -> int:
        """The number of samples."""

    def branches(self, sample: int) -> list[Tokens]:
        """The token sequences of a sample."""


class WholeSet(Samples, Protocol):
    """All samples of a run, by number."""

    @property
    def digest(self) -> str:
        """What tells these samples from others."""

    def tokens(self) -> np.ndarray:
        """The tokens of each sample, all branches together and also what they share: [M]."""

    def learned(self) -> np.ndarray:
        """Which tokens are learned, those of all samples end to end and also what their branches share: bool [T]."""

    def lengths(self) -> np.ndarray:
        """The tokens that each sample takes in a row: [M]."""


@dataclass(frozen=True, eq=False)
class PackedRows:
    """The rows of a whole run, epoch after epoch; row i is the same whoever asks."""

    store: WholeSet
    plan: Plan
    fill: float  # tokens over room, in the first epoch
    blanks: int = 0  # rows at the end that count for nothing
    skips: Skips | None = None  # how positions are skipped
    epochs: tuple[int, ...] = (0,)  # the row that each epoch begins with
    order: np.ndarray | None = None  # in which rows are taken, where processes share them: [rows]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.plan) + self.blanks

    def __getitem__(self, index: int) -> PackedRow:
        """The arrays of one row."""
        index = index if self.order is None else int(self.order[index])
        if len(self.plan) <= index < len(self):
            return lay(self.store, self.plan.row(0)) | {"blank": np.ones(0)}
        row = lay(self.store, self.plan.row(index))
        if self.skips is not None:
            row["position_ids"] = self.skips.positions(row, bisect_right(self.epochs, index) - 1)
        return row

    def shared_by(self, ranks: int, batch: int, accumulation: int | None = None) -> "PackedRows":
        """The rows that ranks take micro-batches of in turn, with blank ones so that each has as many of them.

        Of `accumulation` micro-batches of each rank in a step, which one takes which is chosen so that work is even.
        """
        if ranks == 1:
            return self
        blanks, taken = -len(self.plan) % (ranks * batch), None
        if accumulation is not None and len(self.plan):
            each = balance.work(self.plan)
            taken = balance.order(np.concatenate([each, each[:1].repeat(blanks)]), ranks, batch, accumulation)
        return replace(self, blanks=blanks, order=taken)


def lay(store: Samples, pieces: np.ndarray) -> PackedRow:
    """Lay pieces of samples end to end, and what the branches of one share once.

    A position is asked for the token after it in its sample, also where the sample goes on in another row; or for the
    class of its own token, where tokens have one.
    """
    prefix: list[tuple[int, int]] = []
    columns: dict[str, list[np.ndarray]] = {"input_ids": [], "target": [], "weight": []}
    labels: list[float] = []
    lengths: list[int] = []
    numbers: list[int] = []
    for sample, start, end in pieces:
        branches = store.branches(sample)
        for number, tokens in enumerate(branches):
            if len(branches) > 1:  # such a sample is never split
                start, end = tokens.shared, len(tokens)
            ahead = slice(start + 1, end + 1)
            missing = (0, end - start - len(tokens.ids[ahead]))  # the last token has no next
            columns["input_ids"].append(tokens.ids[start:end])
            columns["target"].append(np.pad(tokens.ids[ahead], missing))
            if tokens.label is None:
                columns["weight"].append(np.pad(tokens.weight[ahead], missing))
            else:  # which is asked where its token stands
                columns["weight"].append((tokens.label[start:end] >= 0).astype(np.float32))
                columns.setdefault("token_label", []).append(tokens.label[start:end])
            if tokens.reference is not None:
                columns.setdefault("reference", []).append(np.pad(tokens.reference[ahead], missing))
            if tokens.teacher is not None:
                learned = np.flatnonzero(tokens.weight[1:])  # the positions that are asked for a learned token
                columns.setdefault("teacher", []).append(tokens.teacher[(learned >= start) & (learned < end)])
            prefix.append((len(lengths) - 1 if tokens.shared else 0, tokens.shared))
            lengths.append(end - start)
            labels.append(store.label[sample])
            numbers.append(number)
    beside = {
        name: np.concatenate(columns[name]) for name in ("reference", "token_label", "teacher") if name in columns
    }
    return beside | {
        "input_ids": np.concatenate(columns["input_ids"]).astype(np.int64),
        "target": np.concatenate(columns["target"]).astype(np.int64),
        "weight": np.concatenate(columns["weight"]),
        "lengths": np.asarray(lengths, np.int64),
        "prefix": np.asarray(prefix, np.int64),
        "label": np.asarray(labels, np.float32),
        "branch": np.asarray(numbers, np.int64),
    }


def join(rows: list[PackedRow]) -> dict[str, Any]:
    """One micro-batch from some packed rows: the fields of `types.Batch`. It is blank where all of them are.

    What decides shapes (`asked`, `lengths`) is found here, on the CPU: found on a device, each step would wait for it.
    """
    import torch

    rows = [row for row in rows if "blank" not in row] or rows[:1]
    lengths = np.concatenate([row["lengths"] for row in rows])  # [S]
    flat: dict[str, Any] = {name: np.concatenate([row[name] for row in rows])[None] for name in ("input_ids", "target")}
    for name in ("weight", "reference", "token_label"):
        if name in rows[0]:
            flat[name] = np.concatenate([row[name] for row in rows])[None]
    if "teacher" in rows[0]:
        told = np.concatenate([row["teacher"] for row in rows])  # [N]
        flat |= {"teacher_words": told["words"].astype(np.int64), "teacher_logps": told["logps"]}
    prefix = np.concatenate([row["prefix"] for row in rows])  # [S, 2]
    counts = zip(prefix[:, 1], lengths, strict=True)
    flat["position_ids"] = np.concatenate([np.arange(shared, shared + length) for shared, length in counts])[None]
    if "position_ids" in rows[0]:
        flat["position_ids"] = np.concatenate([row["position_ids"] for row in rows])[None]
    flat["seq"] = np.repeat(np.arange(len(lengths)), lengths)[None]
    for name in ("label", "branch"):
        flat[name] = np.concatenate([row[name] for row in rows])
    if prefix[:, 1].any():
        first = np.cumsum([0, *(len(row["lengths"]) for row in rows[:-1])])  # sequence of each row
        prefix[:, 0] += np.repeat(first, [len(row["lengths"]) for row in rows])
        flat["prefix"] = prefix
    flat["offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat["asked"] = flat["weight"][0].nonzero()[0]
    host = {"longest": int(lengths.max()), "lengths": lengths.tolist(), "blank": "blank" in rows[0]}
    return {name: torch.from_numpy(values) for name, values in flat.items()} | host


def training_rows(recipe: Recipe, store: WholeSet, orders: Iterator[np.ndarray], ranks: int = 1) -> PackedRows:
    """The rows of the whole run, from the epochs' samples in order (see `mix.epochs`): `max_steps` or the epochs.

    Those of a step are shared by so many `ranks`.

    Raises:
        RecipeError: as `pack`.
    """
    train = recipe.train
    per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps * ranks
    wanted = train.max_steps * per_step if train.max_steps is not None else None
    lengths = sizes(recipe, store)
    plans: list[Plan] = []
    rows = 0
    while rows < wanted if wanted is not None else len(plans) < train.num_train_epochs:
        seed = (recipe.data.seed, 3, len(plans)) if recipe.data.shuffle else None
        plans.append(pack(recipe, lengths, next(orders), seed))
        rows += len(plans[-1])
    if wanted is None:
        unfinished = len(plans) - train.num_train_epochs  # the share of the last epoch that is not wanted
        wanted = max(1, rows - int(unfinished * len(plans[-1])))
    return PackedRows(
        store,
        _chained(plans).first(wanted),
        plans[0].tokens / max(1, room(recipe, plans[0], lengths)),
        skips=Skips.of(recipe.data),
        epochs=tuple(accumulate((len(plan) for plan in plans[:-1]), initial=0)),
    )


def evaluation_rows(recipe: Recipe, store: WholeSet, samples: np.ndarray) -> PackedRows:
    """The rows of the held-out samples, once, in order. Raises RecipeError, as `pack`."""
    lengths = sizes(recipe, store)
    plan = pack(recipe, lengths, samples, seed=None)
    return PackedRows(store, plan, plan.tokens / max(1, room(recipe, plan, lengths)))


def hold_out(recipe: Recipe, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The samples to train on and those held out by `data.eval` as a fraction or count; by the seed alone.

    `rows` [M] says which row each sample comes from, in order: whole rows are held out, as many as give the samples
    asked for.

    Raises:
        RecipeError: all of them are held out.
    """
    share, number = recipe.data.eval, len(rows)
    assert isinstance(share, float)
    if not share:
        return np.arange(number), np.arange(0)
    wanted = max(1, round(share * number) if share < 1 else int(share))
    row_of = np.cumsum(np.diff(rows, prepend=rows[:1]) != 0)
    samples = np.bincount(row_of)
    order = np.random.default_rng([recipe.data.seed, 1]).permutation(len(samples))
    taken = np.searchsorted(np.cumsum(samples[order]), wanted) + 1
    held = np.zeros(len(samples), bool)
    held[order[:taken]] = True
    held = held[row_of]
    if held.all():
        source = f"{len(samples)} rows" if len(samples) > 1 else "one row"
        raise RecipeError(
            f"data.eval: {number} of {number} samples are held out, so none is left to train on (they come from "
            f"{source}, and the parts of a row stay together)"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def sizes(recipe: Recipe, store: Any) -> np.ndarray:
    """What rows are planned by: the tokens of each sample [M], or of its two sequences [M, 2] where one is encoded."""
    found: np.ndarray = store.sides() if type(recipe.objective).encodes else store.lengths()
    return found


def room(recipe: Recipe, plan: Plan, lengths: np.ndarray) -> int:
    """The tokens that the rows of a plan could hold; where two sequences are padded, the places that they take."""
    row_tokens = recipe.train.row_tokens
    assert isinstance(row_tokens, int), "resolved before the run"
    return padded_places(plan, lengths) if type(recipe.objective).encodes else row_tokens * len(plan)


def pack(recipe: Recipe, lengths: np.ndarray, order: np.ndarray, seed: tuple[int, ...] | None) -> Plan:
    """Samples of these lengths (see `sizes`) as rows, taken in `order`, as the recipe's objective wants them.

    Raises:
        RecipeError: a sample is longer than a row, and the objective splits none.
    """
    row_tokens = recipe.train.row_tokens
    assert isinstance(row_tokens, int), "resolved before the run"
    if type(recipe.objective).documents:
        return plan_documents(lengths, row_tokens, order)
    padded = type(recipe.objective).encodes
    longest = int((lengths[order].sum(axis=1) if padded else lengths[order]).max())
    if longest > row_tokens:
        several = " in all its sequences, which stand in one row" if type(recipe.objective).sequences() > 1 else ""
        raise RecipeError(
            f"train.row_tokens is {row_tokens}, and a sample has {longest} tokens{several}: raise it, or lower "
            "data.max_tokens"
        )
    plan = plan_padded if padded else plan_epoch
    return plan(lengths, row_tokens, recipe.data.window_samples, order, seed)


def _chained(plans: list[Plan]) -> Plan:
    starts = offsets_of(np.asarray([len(plan.pieces) for plan in plans]))
    offsets = [plan.row_offsets[:-1] + start for plan, start in zip(plans, starts[:-1], strict=True)]
    return Plan(np.concatenate([plan.pieces for plan in plans]), np.concatenate([*offsets, starts[-1:]]))
