"""Rows that are rendered as they are needed, so that no source is ever whole in memory or on disk.

`blocks.py` says what a stream is. Here it becomes the dataset of a run: the next block is rendered while the one before
is trained on, a checkpoint holds the point where its block begins, and a resumed stream goes on from there.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import atomic
from tunesmith.component import spell
from tunesmith.data import prompt, registry, source
from tunesmith.data.batch import PackedRow, lay
from tunesmith.data.blocks import Block, Blocks, Buffer, Place, Point
from tunesmith.data.ledger import Ledger, source_names
from tunesmith.data.prepare import GIVEN, placed_rows, processes_for, tokenizer_identity
from tunesmith.data.reader import Opened, look
from tunesmith.data.render import Renderer, Row, format_notes
from tunesmith.data.skip import Skips
from tunesmith.data.workers import Workers
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe import Recipe
from tunesmith.recipe_data import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGE_BYTES = 64_000_000  # of text in a file of which it is said that it is held whole
NOT_ROWS = {"num_processes", "cache_dir"}  # of the data options, which change no row


class StreamedRows:
    """The rows of a whole run, asked for in order. Close it after use.

    The next block is rendered by a thread, or by the processes that it waits for, with a tokenizer of its own.
    """

    def __init__(self, blocks: Blocks, number: int, row_tokens: int, start: Point) -> None:
        self.blocks, self.number, self.row_tokens = blocks, number, row_tokens
        self.skips = Skips.of(blocks.data)
        self._points = [start]  # where the blocks begin, the oldest that may be asked for first, and the last one ends
        self._thread = ThreadPoolExecutor(1, "tunesmith-stream")
        self._coming: Future[Block] = self._thread.submit(blocks.make, start)
        try:
            self.block = self._next()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """The number of rows."""
        return self.number

    def __getitem__(self, index: int) -> PackedRow:
        """The arrays of one row, of the block before which no row is asked for any more.

        Raises:
            IndexError: the run has fewer rows.
            DataError, TemplateError, ModelError: as `Blocks.make`.
        """
        if index >= self.number:
            raise IndexError(index)
        while index >= self.block.end.packed_rows:
            self.block = self._next()
        first = self.block.start.packed_rows
        assert index >= first, "rows are asked for in order"
        row = lay(self.block.buffer, self.block.plan.row(index - first))
        if self.skips is not None:
            row["position_ids"] = self.skips.positions(row, self.block.start.epoch)
        return row

    def _next(self) -> Block:
        block = self._coming.result()
        self._points.append(block.end)
        if block.end.packed_rows < self.number:
            self._coming = self._thread.submit(self.blocks.make, block.end)
        return block

    def point(self, rows: int) -> dict[str, Any]:
        """What a checkpoint after some rows keeps of the stream: the beginning of the block of the row after them."""
        before = [number for number, one in enumerate(self._points) if one.packed_rows <= rows]
        self._points = self._points[before[-1] :]
        return self._points[0].as_dict()

    def account(self, rows: int) -> dict[str, Any]:
        """The ledger up to the end of the block of the last of some rows, whatever is rendered ahead."""
        return account(next(one for one in self._points if one.packed_rows >= rows), self.row_tokens)

    def close(self) -> None:
        """Stop rendering."""
        self.blocks.given_up.set()
        self._thread.shutdown(cancel_futures=True)
        self.blocks.workers.close()


@dataclass(frozen=True, eq=False)
class Stream:
    """The rows of a stream, and what is known of it before it is read."""

    rows: StreamedRows
    first: Buffer  # the samples that its sources begin with
    fingerprint: str
    lines: tuple[str, ...]  # what was chosen for the user, and the account of the first block


def open_stream(
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Iterable[Mapping[str, Any]] | None = None,
    start: Mapping[str, Any] | None = None,
) -> Stream:
    """The stream of a resolved recipe, from its beginning or from a point that a checkpoint kept.

    `rows` stand for data.train's files, and are read with the format of its first source.

    Raises:
        RecipeError: an option does not go with streaming.
        DataError: also when `rows` can be read only once.
        TemplateError, ModelError: as `Renderer.render`.
    """
    train, sources = recipe.train, recipe.data.train if rows is None else recipe.data.train[:1]
    if train.transformers.get("dataloader_num_workers"):
        raise RecipeError(
            f"train.transformers.dataloader_num_workers is {train.transformers['dataloader_num_workers']}, and each "
            "would render the whole stream: leave it out. data.num_processes renders in several processes"
        )
    renderer = Renderer(recipe.data, recipe.objective, copy.deepcopy(tokenizer))  # a thread's own: they are not shared
    names = source_names(sources) if rows is None else [GIVEN]
    opened = [look(one, name, _reading(one, rows), renderer) for one, name in zip(sources, names, strict=True)]
    workers = Workers(renderer, _processes(recipe, rows))
    point = Point.from_dict(start) if start is not None else Point([Place() for _ in opened])
    if len(point.places) != len(opened):
        raise DataError(f"data.train has {len(opened)} sources, and the run began with {len(point.places)}")
    blocks = Blocks(recipe, opened, workers)
    assert train.max_steps is not None and isinstance(train.row_tokens, int), (
        "a streaming recipe has the one, and resolved"
    )
    number = train.max_steps * train.per_device_train_batch_size * train.gradient_accumulation_steps
    fingerprint = _fingerprint(recipe, tokenizer, opened, from_files=rows is None)
    lines = [*prompt.notes(tokenizer), *(line for one in opened for line in _notes(one, from_files=rows is None))]
    if len(opened) > 1 and not blocks.drawn:
        lines.append("the sources are streamed one after the other: data.mix=all_exhausted mixes them")
    first = Buffer.of([sample for one in opened for sample in one.first])
    streamed = StreamedRows(blocks, number, train.row_tokens, point)
    return Stream(streamed, first, fingerprint, (*lines, *_beginning(streamed, recipe.objective.of_samples())))


def _reading(one: Source, rows: Iterable[Any] | None) -> Callable[[], Iterator[Row]]:
    if rows is None:
        return lambda: source.read(one, streaming=True)
    if iter(rows) is rows:
        raise DataError(
            f"rows is a {type(rows).__name__}, which can be read once, and a stream reads its rows again when they "
            "end and when a run goes on: bring a list, or an object that begins anew each time it is iterated"
        )
    return lambda: _some(rows)


def _some(rows: Iterable[Any]) -> Iterator[Row]:
    placed = placed_rows(rows)
    first = next(placed, None)
    if first is None:
        raise DataError(f"rows is a {type(rows).__name__} that gives no row")
    yield first
    yield from placed


def _processes(recipe: Recipe, rows: Iterable[Any] | None) -> int:
    if rows is not None:
        return recipe.data.num_processes or 1
    return max(processes_for(recipe, one) for one in recipe.data.train)


def _notes(one: Opened, from_files: bool) -> Iterator[str]:
    """What was chosen for the user, and what does not stream."""
    yield from registry.notes((one.source,))
    yield from format_notes(one.name, one.source, one.format)
    for path in source.files_here(one.source) if from_files else ():
        size = path.stat().st_size
        if size > LARGE_BYTES and path.suffix == ".json" and _begins(path) == b"[":
            yield f"{path} is one JSON array, of which {size / 1e6:,.0f} MB of text are held whole: JSON lines are not"


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


def _beginning(rows: StreamedRows, of_samples: bool) -> Iterator[str]:
    """The account of the first block that was rendered."""
    start, end = rows.block.start, rows.block.end
    if start.block:
        yield f"the stream goes on in block {start.block + 1:,}, after {start.packed_rows:,} packed rows"
    said = f"a stream, of which {len(rows.block.buffer):,} samples are shuffled and packed at a time"
    yield f"{said}; up to here:" if start.block else f"{said}; the first of them:"
    yield from Ledger.from_dict(end.as_dict()["ledger"]).lines(of_samples=of_samples)


def account(point: Point, row_tokens: int) -> dict[str, Any]:
    """The ledger of a stream up to a point."""
    fill = point.packed_tokens / max(1, point.packed_room)
    packed = {"packed_rows": point.packed_rows, "row_tokens": row_tokens, "fill": round(fill, 4)}
    return point.as_dict()["ledger"] | packed | {"epochs": point.epoch, "blocks": point.block}


def write_account(run: Path, rows: StreamedRows, number: int) -> None:
    """Put the account of a stream up to some rows in the place of the one before, in a run's ledger.json."""
    path = run / "ledger.json"
    counts = json.loads(path.read_text(encoding="utf-8"))
    atomic.write(path, json.dumps(counts | {"train": rows.account(number)}, indent=2).encode())


def place_in(rows: Any, run: Path, trained: int) -> dict[str, Any] | None:
    """Where a stream stands after the rows that were trained on, those that wait for the next step not counted.

    What it read up to there goes into the run's ledger. None where the rows are no stream.
    """
    if not isinstance(rows, StreamedRows):
        return None
    write_account(run, rows, trained)
    return rows.point(trained)


def _fingerprint(recipe: Recipe, tokenizer: Any, opened: list[Opened], from_files: bool) -> str:
    """A digest of what decides the rows of a stream, without reading all of them: 64 hexadecimal digits.

    That is the sources with their files, the data options, the tokenizer, and the tokens that the sources begin with.
    """
    seen = hashlib.sha256()
    for one in opened:
        for tokens in (tokens for rendered in one.first for tokens in rendered.branches):
            seen.update(tokens.ids.tobytes() + tokens.weight.tobytes())
    parts = {
        "data": recipe.data.model_dump(mode="json", exclude=NOT_ROWS),
        "objective": spell(recipe.objective),
        "tokenizer": tokenizer_identity(tokenizer),
        "row_tokens": recipe.train.row_tokens,
        "sources": [source.fingerprint(one.source, streaming=True) for one in opened] if from_files else [],
        "first": seen.hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
