"""The blocks of a stream: some samples of the sources, in memory, shuffled and packed together.

A block is `data.buffer_samples` samples (fewer where they hold `BLOCK_TOKENS` or where an epoch ends), shuffled by the
seed and the block's number and packed in windows. Documents that are laid end to end go on in the next block, so that
no token is lost. A source that is used up begins again, and its samples meet others in another order. Between two
blocks stands a `Point`, from which all that comes after follows.

An epoch is what `mix.epochs` says, but that samples of a source come in the order of its files, and that a weight
repeats whole passes alone where sources are concatenated, one after the other. The samples of a row stay together.
"""

import base64
import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tunesmith.data.batch import pack, room, sizes
from tunesmith.data.ledger import Ledger
from tunesmith.data.mix import due
from tunesmith.data.pack import Plan
from tunesmith.data.reader import Opened, Reader
from tunesmith.data.refuse import Tolerance
from tunesmith.data.rendered import Rendered
from tunesmith.data.shared import own_tokens
from tunesmith.data.workers import Workers
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe import Recipe
from tunesmith.types import Tokens

BLOCK_TOKENS = 2**25  # 268 MB of token numbers and weights


@dataclass
class Place:
    """Where a stream stands in one source."""

    passes: int = 0  # times it was read to its end
    row: int = 0  # rows read of the pass after those
    kept: int = 0  # samples of those rows
    size: int = 0  # samples of a pass, once one is known
    samples: int = 0  # of the epoch
    drawn: int = 0  # the same, or their tokens where weights are shares of those
    looked: int = 0  # rows looked at for those that are refused
    refused: int = 0


@dataclass
class Point:
    """A place between two blocks, small enough for JSON."""

    places: list[Place]
    epoch: int = 0
    reading: int = 0  # the source that is read, where they are concatenated
    block: int = 0
    packed_rows: int = 0
    packed_tokens: int = 0
    packed_room: int = 0  # places in those rows
    carried: list[list[str]] = field(default_factory=list)  # what no row holds yet of documents: ids and weights
    ledger: dict[str, Any] = field(default_factory=lambda: Ledger().as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The point as JSON has it."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Point":
        """The point that `as_dict` wrote."""
        return cls(**{**saved, "places": [Place(**place) for place in saved["places"]]})


@dataclass(frozen=True, eq=False)
class Buffer:
    """Samples in memory."""

    samples: Sequence[tuple[Tokens, ...]]
    label: np.ndarray  # [M] float32

    @classmethod
    def of(cls, rendered: Sequence[Rendered]) -> "Buffer":
        """The samples that are kept."""
        kept = [one for one in rendered if one.dropped is None]
        labels = [np.nan if one.label is None else one.label for one in kept]
        return cls([one.branches for one in kept], np.asarray(labels, np.float32))

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def branches(self, sample: int) -> list[Tokens]:
        """The token sequences of a sample."""
        return list(self.samples[sample])

    def lengths(self) -> np.ndarray:
        """The tokens that each sample takes in a row, all branches together and what they share once: [M]."""
        return np.asarray([own_tokens(branches) for branches in self.samples], np.int64)

    def sides(self) -> np.ndarray:
        """The tokens of the two sequences of each sample, where each has two: [M, 2]."""
        return np.asarray([[len(tokens) for tokens in branches] for branches in self.samples], np.int64)


@dataclass(frozen=True, eq=False)
class Block:
    """Some samples of a stream, and the rows they are packed in."""

    buffer: Buffer
    plan: Plan
    start: Point
    end: Point


class Blocks:
    """The blocks of some sources, made one at a time.

    Raises:
        RecipeError: a weight repeats a part of a source, which is not known before the source is read.
    """

    def __init__(self, recipe: Recipe, opened: Sequence[Opened], workers: Workers) -> None:
        self.recipe, self.data, self.workers = recipe, recipe.data, workers
        self.weights = [one.source.weight for one in opened]
        self.drawn = self.data.mix != "concatenate" and len(opened) > 1
        for number, weight in enumerate(self.weights):
            if self.data.mix == "concatenate" and weight != int(weight):
                raise RecipeError(
                    f"data.train.{number}.weight is {weight:g}: a stream repeats a whole source, or draws from "
                    "several by weight. Say a whole number, or data.mix=all_exhausted"
                )
        self.tolerances = [Tolerance() for _ in opened]
        self.readers = [Reader(one, workers, -(-workers.ahead // len(opened))) for one in opened]
        self.given_up = threading.Event()  # set by another thread that wants no block any more
        self._at: Point | None = None

    def make(self, start: Point) -> Block:
        """The block that begins at a point.

        Raises:
            DataError, TemplateError, ModelError: as `Renderer.render` and `source.read`; or no row of a source can be
                trained on.
        """
        if start is not self._at:
            for place, reader, tolerance in zip(start.places, self.readers, self.tolerances, strict=True):
                reader.seek(place.row)
                tolerance.rows, tolerance.refused = place.looked, place.refused
        self._at = None  # until the block is whole
        end = Point.from_dict(start.as_dict())
        carried = [_decoded(one) for one in end.carried]
        new = self._read(end)
        label = np.concatenate([np.full(len(carried), np.nan, np.float32), new.label])
        buffer = Buffer([*((tokens,) for tokens in carried), *new.samples], label)
        order = self._order(len(carried), len(new), start.block)
        seed = (self.data.seed, 5, start.block) if self.data.shuffle else None
        planned_by = sizes(self.recipe, buffer)
        plan = pack(self.recipe, planned_by, order, seed)
        if type(self.recipe.objective).documents:
            plan, rest = self._whole_rows(plan, buffer, order)
            end.carried = [_encoded(tokens) for tokens in rest]
        end.block += 1
        end.packed_rows += len(plan)
        end.packed_tokens += plan.tokens
        end.packed_room += room(self.recipe, plan, planned_by)
        self._at = end
        return Block(buffer, plan, start, end)

    def _order(self, carried: int, new: int, block: int) -> np.ndarray:
        """The samples of a block in the order in which they are packed; those carried come first."""
        found = np.arange(carried + new)
        if self.data.shuffle:
            found[carried:] = np.random.default_rng([self.data.seed, 4, block]).permutation(found[carried:])
        return found

    def _whole_rows(self, plan: Plan, buffer: Buffer, order: np.ndarray) -> tuple[Plan, list[Tokens]]:
        """The rows of documents that are full, and what is left after them."""
        row_tokens = self.recipe.train.row_tokens
        assert isinstance(row_tokens, int), "resolved before the run"
        left = int(buffer.lengths().sum()) % row_tokens
        rest: list[Tokens] = []
        for sample in reversed(order if left else ()):
            (tokens,) = buffer.samples[sample]
            rest.insert(0, Tokens(tokens.ids[-left:], tokens.weight[-left:]))
            left -= len(rest[0])
            if not left:
                break
        last = plan.row(len(plan) - 1) if len(plan) else np.zeros((0, 3), np.int64)
        full = int((last[:, 2] - last[:, 1]).sum()) in (0, row_tokens)
        return plan if full else plan.first(len(plan) - 1), rest

    def _read(self, at: Point) -> Buffer:
        """The next samples of the sources; the point moves to where they end."""
        counts = Ledger.from_dict(at.ledger)
        sources = range(len(self.readers))
        dues = [self._due(at.places[number], number) for number in sources]
        found: list[Rendered] = []
        tokens = 0
        while len(found) < self.data.buffer_samples and tokens < BLOCK_TOKENS:
            if self.given_up.is_set():
                raise CancelledError
            number = min(sources, key=dues.__getitem__) if self.drawn else at.reading
            some = self._take(at.places[number], number, counts)
            found += some
            tokens += _tokens(some)
            if self._ends_epoch(at, number):
                break
            dues[number] = self._due(at.places[number], number)
        at.ledger = json.loads(json.dumps(counts.as_dict()))
        return Buffer.of(found)

    def _take(self, place: Place, number: int, counts: Ledger) -> list[Rendered]:
        """The samples of a source's next row, and past those after it that have none; at its end, to its beginning."""
        reader, tolerance = self.readers[number], self.tolerances[number]
        found: list[Rendered] = []
        reasons: Counter[str] = Counter()  # of all rows of the source where none is kept, as then they come at once
        while (parts := reader.peek()) is not None:
            kept = [one for one in parts if one.dropped is None]
            if found and kept:
                break
            if reader.is_again and not found and not place.kept:  # what it gave nothing of, it would read for ever
                parts = None
                break
            reasons.update(() if kept else [str(parts[0].dropped)])
            tolerance.look(parts)
            for one in parts:
                counts.add(one, reader.opened.name)
            found += kept
            reader.take()
        place.looked, place.refused = tolerance.rows, tolerance.refused
        place.kept += len(found)
        place.samples += len(found)
        place.drawn += _tokens(found) if self.data.weight_by == "tokens" else len(found)
        if parts is None:
            tolerance.end()
            if not place.kept:
                said = "; ".join(f"{number} × {reason}" for reason, number in reasons.items())
                raise DataError(f"{reader.opened.name}: no row can be trained on: {said}")
            reader.take()
            place.passes, place.size, place.kept = place.passes + 1, place.kept, 0
        place.row = reader.row
        return found

    def _due(self, place: Place, number: int) -> float:
        """When the next row of a source comes, where sources are drawn by weight."""
        if not self.drawn:
            return 0.0
        parts = self.readers[number].peek() or []
        size = _tokens(parts) if self.data.weight_by == "tokens" else sum(one.dropped is None for one in parts)
        return float(due(place.drawn, max(1, size), self.weights[number]))

    def _ends_epoch(self, at: Point, number: int) -> bool:
        """Whether an epoch ended with what was just read of a source; if so, the next one begins."""
        if self.drawn:
            used_up = [0 < place.size <= place.samples for place in at.places]
            over = any(used_up) if self.data.mix == "first_exhausted" else all(used_up)
        else:
            place = at.places[number]
            weight = int(self.weights[number]) if self.data.mix == "concatenate" else 1
            done = not place.row and place.passes == weight * (at.epoch + 1)
            at.reading = (number + 1) % len(at.places) if done else number
            over = done and at.reading == 0
        if over:
            at.epoch += 1
            for place in at.places:
                place.samples = place.drawn = 0
        return over


def _tokens(samples: Iterable[Rendered]) -> int:
    return sum(len(branch) for one in samples for branch in one.branches)


def _encoded(tokens: Tokens) -> list[str]:
    return [base64.b64encode(part.tobytes()).decode() for part in (tokens.ids, tokens.weight)]


def _decoded(texts: list[str]) -> Tokens:
    ids, weight = map(base64.b64decode, texts)
    return Tokens(np.frombuffer(ids, np.int32), np.frombuffer(weight, np.float32))
