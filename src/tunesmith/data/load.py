"""Everything between a recipe's sources and the trainer: rendered, split, packed, and accounted for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.batch import PackedRows, evaluation_rows, hold_out, training_rows
from tunesmith.data.prepare import prepare, prepare_rows
from tunesmith.data.store import Store
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_SAMPLES = 100  # samples looked at for the tokens that end an answer


@dataclass(frozen=True, eq=False)
class Rows:
    """What a run trains and evaluates on."""

    train: PackedRows
    held_out: PackedRows | None
    ledger: dict[str, Any]
    fingerprint: str  # of every token and weight, in order
    end_tokens: tuple[int, ...]  # what ends an answer in these rows
    lines: tuple[str, ...]  # the account in words


def load_rows(
    recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", rows: Iterable[Mapping[str, Any]] | None = None
) -> Rows:
    """The packed rows of a resolved recipe, for a prepared tokenizer; `rows` stand for data.train's files."""
    data = recipe.data
    if rows is None:
        store = prepare(recipe, data.train, tokenizer)
    else:
        store = prepare_rows(recipe, rows, tokenizer)
    fingerprint = store.digest
    lines = [f"data: {line}" for line in (*store.notes, *store.ledger.lines())]
    samples, held_out, other = np.arange(len(store)), None, None
    if isinstance(data.eval, tuple):
        other = prepare(recipe, data.eval, tokenizer)
        held_out = evaluation_rows(recipe, other, np.arange(len(other)))
        lines += [f"held out: {line}" for line in (*other.notes, *other.ledger.lines())]
        fingerprint += f"+{other.digest}"
    elif data.eval:
        samples, held = hold_out(recipe, store.row)
        held_out = evaluation_rows(recipe, store, held)
        lines.append(f"held out: {len(held):,} of {len(store):,} samples (data.seed {data.seed})")
    train = training_rows(recipe, store, samples)
    assert recipe.train.row_tokens is not None, "resolved before the run"
    lines.append(f"packed: rows of {recipe.train.row_tokens:,} tokens, {train.fill:.1%} full, no padding")
    ledger: dict[str, Any] = {"train": store.ledger.as_dict() | _packing(recipe, train)}
    ledger["train"]["samples_trained"] = len(samples)
    if held_out is not None:
        ledger["eval"] = (other.ledger.as_dict() if other else {"samples": len(store) - len(samples)}) | _packing(
            recipe, held_out
        )
    return Rows(train, held_out, ledger, fingerprint, end_tokens(store, tokenizer), tuple(lines))


def _packing(recipe: Recipe, rows: PackedRows) -> dict[str, Any]:
    return {"packed_rows": len(rows), "row_tokens": recipe.train.row_tokens, "fill": round(rows.fill, 4)}


def context_problem(ledger: Mapping[str, Any], config: Any) -> str | None:
    """What to say when a sequence is longer than a model of this config has seen; None when none is.

    It is no reason to refuse: rotary positions go on beyond the length they were trained with, less well.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = max(min(part.get("longest_tokens", 0), part["row_tokens"]) for part in ledger.values())
    if limit is None or longest <= limit:
        return None
    return (
        f"the longest sample has {longest:,} tokens, and the model was made for {limit:,} (max_position_embeddings): "
        f"beyond them it may answer badly. data.max_tokens={limit} keeps to them"
    )


def end_tokens(store: Store, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The special or added tokens that end the last trained span of the first samples, by id.

    The last token of a shortened document is another one, which ends nothing.
    """
    ends = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    found = set()
    for sample in range(min(END_SAMPLES, len(store))):
        for tokens in store.branches(sample):
            found.add(int(tokens.ids[tokens.weight.nonzero()[0][-1]]))
    return tuple(sorted(found & ends))
