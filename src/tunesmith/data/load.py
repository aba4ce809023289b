"""Everything between a recipe's sources and the trainer: rendered, split, packed, and accounted for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data import lengths, mix, registry
from tunesmith.data.batch import PackedRows, Samples, WholeSet, evaluation_rows, training_rows
from tunesmith.data.choose import choose
from tunesmith.data.mismatched import Mismatched
from tunesmith.data.prepare import prepare, prepare_rows
from tunesmith.data.store import Store
from tunesmith.data.stream import StreamedRows, account, open_stream
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_SAMPLES = 100  # samples looked at for the tokens that end an answer


@dataclass(frozen=True, eq=False)
class Rows:
    """What a run trains and evaluates on."""

    train: PackedRows | StreamedRows
    held_out: PackedRows | None
    ledger: dict[str, Any]
    fingerprint: str  # of every token and weight, in order; of a stream, what decides them
    end_tokens: tuple[int, ...]  # what ends an answer in these rows
    lines: tuple[str, ...]  # the account in words

    def shared_by(self, ranks: int, recipe: Recipe) -> "Rows":
        """The rows with blank ones, so that each of so many ranks has as many micro-batches, and as much work."""
        assert isinstance(self.train, PackedRows), "several share no stream"
        said = recipe.train
        train = self.train.shared_by(ranks, said.per_device_train_batch_size, said.gradient_accumulation_steps)
        batch = recipe.eval.per_device_eval_batch_size
        return replace(self, train=train, held_out=self.held_out and self.held_out.shared_by(ranks, batch))

    def close(self) -> None:
        """Stop what renders in the background."""
        if isinstance(self.train, StreamedRows):
            self.train.close()


def load_rows(
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Iterable[Mapping[str, Any]] | None = None,
    point: Mapping[str, Any] | None = None,
    ranks: int = 1,
) -> Rows:
    """The packed rows of a resolved recipe, for a prepared tokenizer. Close them after use.

    `rows` stand for data.train's files. `point` is what a checkpoint kept of a stream that goes on. `ranks` processes
    share the rows of a step.

    Raises:
        DataError, TemplateError, ModelError: as `prepare`, `choose` and `open_stream`.
        RecipeError: nothing is left to train on, or options do not go together with these rows.
    """
    recipe = registry.applied(recipe, to_train=rows is None)
    data = recipe.data
    if data.streaming:
        return _streamed(recipe, tokenizer, rows, point)
    if rows is None:
        store = prepare(recipe, data.train, tokenizer)
    else:
        store = prepare_rows(recipe, rows, tokenizer)
    other = prepare(recipe, data.eval, tokenizer) if isinstance(data.eval, tuple) else None
    chosen = choose(recipe, store, other)
    own = mix.parts(data.train[: len(store.sources)], store, chosen.trained)
    orders = mix.epochs(data, own, store.lengths())
    first = next(orders)
    epoch = mix.account(own, store, first)
    samples = _as_objective_wants(recipe, store, chosen.trained)
    train = training_rows(recipe, samples, chain([first], orders), ranks)
    ledger: dict[str, Any] = {"train": chosen.ledger.as_dict() | _packing(recipe, train)}
    ledger["train"] |= {"samples_trained": len(chosen.trained), "epoch": epoch}
    ledger["train"]["length_percentiles"] = longest = lengths.percentiles(store.lengths()[chosen.trained])
    lines = [
        f"data: {line}"
        for line in (
            *store.notes,
            *chosen.ledger.lines(of_samples=recipe.objective.of_samples()),
            lengths.line(longest, type(recipe.objective).sequences()),
        )
    ]
    held_out, fingerprint = None, store.digest
    if other is not None:
        held_out, ledger["eval"], said = _evaluated(recipe, other)
        lines += said
        fingerprint += f"+{other.digest}"
    elif data.eval:
        held_out = evaluation_rows(recipe, _as_objective_wants(recipe, store, chosen.held), chosen.held)
        number = len(chosen.held)
        lines.append(f"held out: {number:,} of {chosen.ledger.samples:,} samples (data.seed {data.seed})")
        ledger["eval"] = {"samples": number} | _packing(recipe, held_out)
    lines += [f"data: {line}" for line in mix.lines(data, own, epoch)]
    lines.append(_packed(recipe, train.fill))
    return Rows(train, held_out, ledger, fingerprint, end_tokens(store, tokenizer), tuple(lines))


def _streamed(
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Iterable[Mapping[str, Any]] | None,
    point: Mapping[str, Any] | None,
) -> Rows:
    """A stream to train on; the sources of data.eval are no stream."""
    held_out, evaluated, digest = None, {}, ""
    said: list[str] = []
    if isinstance(recipe.data.eval, tuple):
        other = prepare(recipe, recipe.data.eval, tokenizer)
        held_out, evaluated["eval"], said = _evaluated(recipe, other)
        digest = f"+{other.digest}"
    stream = open_stream(recipe, tokenizer, rows, point)
    counts = account(stream.rows.block.end, stream.rows.row_tokens)
    lines = (*(f"data: {line}" for line in stream.lines), *said, _packed(recipe, counts["fill"]))
    ends = end_tokens(stream.first, tokenizer)
    return Rows(stream.rows, held_out, {"train": counts} | evaluated, stream.fingerprint + digest, ends, lines)


def _evaluated(recipe: Recipe, other: Store) -> tuple[PackedRows, dict[str, Any], list[str]]:
    """The rows of data.eval's own sources, and their account as numbers and in words."""
    assert isinstance(recipe.data.eval, tuple), "a fraction or a count has no store of its own"
    number = np.arange(len(other))
    rows = evaluation_rows(recipe, _as_objective_wants(recipe, other, number), number)
    account = other.ledger.lines(of_samples=recipe.objective.of_samples())
    said = (*other.notes, *account, *mix.once(recipe.data.eval, other))
    return rows, other.ledger.as_dict() | _packing(recipe, rows), [f"held out: {line}" for line in said]


def _as_objective_wants(recipe: Recipe, store: Store, used: np.ndarray) -> WholeSet:
    """Samples with the sequences that an objective wants beside their own."""
    if not type(recipe.objective).mismatched:
        return store
    data = recipe.data
    return Mismatched.draw(store, used, (data.seed, 4), data.max_tokens, data.shared_prefix)


def _packing(recipe: Recipe, rows: PackedRows) -> dict[str, Any]:
    return {"packed_rows": len(rows), "row_tokens": recipe.train.row_tokens, "fill": round(rows.fill, 4)}


def _packed(recipe: Recipe, fill: float) -> str:
    if type(recipe.objective).encodes:
        return (
            f"padded: rows of at most {recipe.train.row_tokens:,} tokens, prompts and answers of like length together, "
            f"{1 - fill:.1%} of them padding"
        )
    return f"packed: rows of {recipe.train.row_tokens:,} tokens, {fill:.1%} full, no padding"


def longest_sequence(ledger: Mapping[str, Any]) -> int:
    """The tokens of the longest sequence that is trained or held out."""
    return max(min(part.get("longest_tokens", 0), part["row_tokens"]) for part in ledger.values())


def context_problem(ledger: Mapping[str, Any], limit: int | None, reach: int = 0) -> str | None:
    """What to say when a sequence, or the `reach` of skipped positions, goes beyond the `limit` of a model; else None.

    It is no reason to refuse: rotary positions go on beyond the length they were trained with, less well.
    """
    longest = longest_sequence(ledger)
    if limit is None or max(longest, reach) <= limit:
        return None
    if reach > limit:
        return (
            f"data.position_skipping goes to {reach:,} tokens, and the model was made for {limit:,} "
            "(max_position_embeddings), which its config keeps: model.rope_scaling makes more"
        )
    return (
        f"the longest sample has {longest:,} tokens, and the model was made for {limit:,} (max_position_embeddings): "
        f"beyond them it may answer badly. data.max_tokens={limit} keeps to them, model.rope_scaling makes more"
    )


def end_tokens(store: Samples, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The special or added tokens that end the last trained span of the first samples, by id.

    The last token of a shortened document is another one, which ends nothing.
    """
    ends = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    found = set()
    for sample in range(min(END_SAMPLES, len(store))):
        for tokens in filter(lambda one: one.trained, store.branches(sample)):
            found.add(int(tokens.ids[tokens.weight.nonzero()[0][-1]]))
    return tuple(sorted(found & ends))
