"""Packed rows as a dataset, and rows joined to a micro-batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.pack import Plan, plan_documents, plan_epoch
from tunesmith.data.store import Store
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    import torch

PackedRow = dict[str, np.ndarray]  # named as in types.Batch, without the first axis


@dataclass(frozen=True, eq=False)
class PackedRows:
    """The rows of a whole run, epoch after epoch; row i is the same whoever asks."""

    store: Store
    plan: Plan
    fill: float  # tokens over room, in the first epoch

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.plan)

    def __getitem__(self, index: int) -> PackedRow:
        """The arrays of one row."""
        return lay(self.store, self.plan.row(index))


def lay(store: Store, pieces: np.ndarray) -> PackedRow:
    """Lay pieces of samples end to end.

    A position is asked for the token after it in its sample, also where the sample goes on in another row.
    """
    columns: dict[str, list[np.ndarray]] = {"input_ids": [], "target": [], "weight": []}
    labels, lengths = [], []
    for sample, start, end in pieces:
        branches = store.branches(sample)
        for tokens in branches:
            stop = len(tokens) if len(branches) > 1 else end  # a sample of several branches is never split
            ahead = slice(start + 1, stop + 1)
            missing = (0, stop - start - len(tokens.ids[ahead]))  # the last token has no next
            columns["input_ids"].append(tokens.ids[start:stop])
            columns["target"].append(np.pad(tokens.ids[ahead], missing))
            columns["weight"].append(np.pad(tokens.weight[ahead], missing))
            lengths.append(stop - start)
            labels.append(store.label[sample])
    return {
        "input_ids": np.concatenate(columns["input_ids"]).astype(np.int64),
        "target": np.concatenate(columns["target"]).astype(np.int64),
        "weight": np.concatenate(columns["weight"]),
        "lengths": np.asarray(lengths, np.int64),
        "label": np.asarray(labels, np.float32),
    }


def join(rows: list[PackedRow]) -> dict[str, "torch.Tensor | int"]:
    """One micro-batch from some packed rows: the fields of `types.Batch`."""
    import torch

    lengths = np.concatenate([row["lengths"] for row in rows])  # [S]
    flat: dict[str, Any] = {name: np.concatenate([row[name] for row in rows])[None] for name in ("input_ids", "target")}
    flat["weight"] = np.concatenate([row["weight"] for row in rows])[None]
    flat["position_ids"] = np.concatenate([np.arange(length) for length in lengths])[None]
    flat["seq"] = np.repeat(np.arange(len(lengths)), lengths)[None]
    flat["label"] = np.concatenate([row["label"] for row in rows])
    flat["offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return {name: torch.from_numpy(values) for name, values in flat.items()} | {"longest": int(lengths.max())}


def training_rows(recipe: Recipe, store: Store, samples: np.ndarray) -> PackedRows:
    """The rows of the whole run, from the samples that are not held out: `max_steps` or the epochs."""
    train = recipe.train
    per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps
    wanted = train.max_steps * per_step if train.max_steps is not None else None
    plans: list[Plan] = []
    rows = 0
    while rows < wanted if wanted is not None else len(plans) < train.num_train_epochs:
        plans.append(_plan(recipe, store, samples, epoch=len(plans)))
        rows += len(plans[-1])
    if wanted is None:
        unfinished = len(plans) - train.num_train_epochs  # the share of the last epoch that is not wanted
        wanted = max(1, rows - int(unfinished * len(plans[-1])))
    assert train.row_tokens is not None, "resolved before the run"
    return PackedRows(store, _chained(plans).first(wanted), plans[0].fill(train.row_tokens))


def evaluation_rows(recipe: Recipe, store: Store, samples: np.ndarray) -> PackedRows:
    """The rows of the held-out samples, once, in order."""
    assert recipe.train.row_tokens is not None, "resolved before the run"
    plan = _pack(recipe, store, samples, seed=None)
    return PackedRows(store, plan, plan.fill(recipe.train.row_tokens))


def hold_out(recipe: Recipe, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The samples to train on and those held out by `data.eval` as a fraction or count; by the seed alone.

    `rows` [M] says which row each sample comes from: whole rows are held out, as many as give the samples asked for.
    """
    share, number = recipe.data.eval, len(rows)
    assert isinstance(share, float)
    if not share:
        return np.arange(number), np.arange(0)
    wanted = max(1, round(share * number) if share < 1 else int(share))
    _, row_of, samples = np.unique(rows, return_inverse=True, return_counts=True)
    order = np.random.default_rng([recipe.data.seed, 1]).permutation(len(samples))
    taken = np.searchsorted(np.cumsum(samples[order]), wanted) + 1
    held = np.isin(row_of, order[:taken])
    if held.all():
        source = f"{len(samples)} rows" if len(samples) > 1 else "one row"
        raise RecipeError(
            f"data.eval: {number} of {number} samples are held out, so none is left to train on (they come from "
            f"{source}, and the parts of a row stay together)"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def _plan(recipe: Recipe, store: Store, samples: np.ndarray, epoch: int) -> Plan:
    if not recipe.data.shuffle:
        return _pack(recipe, store, samples, seed=None)
    order = np.random.default_rng([recipe.data.seed, 2, epoch]).permutation(samples)
    return _pack(recipe, store, order, seed=(recipe.data.seed, 3, epoch))


def _pack(recipe: Recipe, store: Store, order: np.ndarray, seed: tuple[int, ...] | None) -> Plan:
    row_tokens = recipe.train.row_tokens
    assert row_tokens is not None, "resolved before the run"
    lengths = store.lengths()
    if type(recipe.objective).documents:
        return plan_documents(lengths, row_tokens, order)
    longest = int(lengths[order].max())
    if longest > row_tokens:
        raise RecipeError(
            f"train.row_tokens is {row_tokens}, and a sample has {longest} tokens: raise it, or lower data.max_tokens"
        )
    return plan_epoch(lengths, row_tokens, recipe.data.window_samples, order, seed)


def _chained(plans: list[Plan]) -> Plan:
    starts = np.cumsum([0, *(len(plan.pieces) for plan in plans)])
    offsets = [plan.row_offsets[:-1] + start for plan, start in zip(plans, starts[:-1], strict=True)]
    return Plan(np.concatenate([plan.pieces for plan in plans]), np.concatenate([*offsets, starts[-1:]]))
