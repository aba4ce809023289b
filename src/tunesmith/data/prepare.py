"""Sources to a store: rendered in one process or many, kept under a key that holds everything that matters."""

import hashlib
import inspect
import json
import multiprocessing
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.component import Component, name_of, spell
from tunesmith.data import ledger, overlong, render, source
from tunesmith.data.render import Renderer, Row
from tunesmith.data.store import Store, StoreWriter
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe, Source
from tunesmith.seams import Format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SMALL_BYTES = 64_000_000  # files below this render faster than processes start

_worker: dict[str, Renderer] = {}  # filled once in each rendering process, empty in the parent


def prepare(recipe: Recipe, sources: tuple[Source, ...], tokenizer: "PreTrainedTokenizerBase") -> Store:
    """The rendered samples of some sources, from the cache when they lie there. The tokenizer is a prepared one.

    Raises:
        DataError: a source cannot be read, a row is not of its format, or no row is left.
    """
    folder = cache_folder(recipe.data.cache_dir) / cache_key(recipe, sources, tokenizer)
    cached = (folder / "meta.json").is_file()
    if not cached:
        renderer = Renderer(recipe.data, recipe.objective, tokenizer)
        with StoreWriter(folder) as writer:
            for one in sources:
                _fill(writer, one, renderer, _processes(recipe, one))
            _refuse_empty(writer.ledger)
    return Store.open(folder, cached)


def prepare_rows(recipe: Recipe, rows: Iterable[Any], tokenizer: "PreTrainedTokenizerBase") -> Store:
    """The same for rows of a Python iterable, read with the format of the first of data.train; not cached."""
    one = recipe.data.train[0]
    renderer = Renderer(recipe.data, recipe.objective, tokenizer)
    folder = Path(tempfile.mkdtemp(prefix="tunesmith-rows-")) / "store"
    with StoreWriter(folder) as writer:
        chunk: list[Row] = []
        format_: Format | None = None
        for number, row in enumerate(rows, 1):
            format_ = format_ or render.format_of(one, row, f"rows:{number}")
            chunk.append((f"rows:{number}", row))
            if len(chunk) == render.CHUNK_ROWS:
                writer.add(renderer.render(chunk, format_))
                chunk = []
        if chunk and format_:
            writer.add(renderer.render(chunk, format_))
        _refuse_empty(writer.ledger)
    return Store.open(folder, cached=False)


def cache_folder(chosen: str | None) -> Path:
    """Where stores are kept: as the recipe says, or tunesmith's folder in the user's cache."""
    if chosen is not None:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tunesmith" / "rendered"


def cache_key(recipe: Recipe, sources: tuple[Source, ...], tokenizer: "PreTrainedTokenizerBase") -> str:
    """A name that changes with anything that could change a rendered token or the ledger."""
    template = recipe.data.template
    parts = {
        "sources": [(one.path, source.fingerprint(one)) for one in sources],
        "formats": [spell(one.format) for one in sources],
        "template": spell(template),
        "chat_template": tokenizer.chat_template,
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "max_tokens": recipe.data.max_tokens,
        "overlong": recipe.data.overlong,
        "objective": [name_of(recipe.objective), type(recipe.objective).documents],
        "code": [_code(kind) for kind in (render, overlong, ledger, source, type(template))]
        + [_code(path) for path in sorted((Path(__file__).parent.parent / "formats").glob("*.py"))]
        + [_code(type(one.format)) for one in sources],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _code(thing: Any) -> str:
    """A digest of the file that something is written in."""
    path = thing if isinstance(thing, Path) else Path(inspect.getfile(thing))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _processes(recipe: Recipe, one: Source) -> int:
    if recipe.data.num_processes is not None:
        return recipe.data.num_processes
    size = sum(path.stat().st_size for path in source.local_files(one))
    return 1 if size < SMALL_BYTES else os.cpu_count() or 1


def _fill(writer: StoreWriter, one: Source, renderer: Renderer, processes: int) -> None:
    """Render a source, its chunks in file order whatever the number of processes."""
    said = False
    for samples, format_ in _rendered_chunks(one, renderer, processes):
        if not said and format_ != one.format:
            writer.notes.append(f"{one.path}: read as {name_of(format_)} (format: auto)")
        said = True
        writer.add(samples)


def _rendered_chunks(one: Source, renderer: Renderer, processes: int) -> Iterator[tuple[list[Any], Format]]:
    if processes == 1:
        for rows, format_ in render.chunks(one):
            yield renderer.render(rows, format_), format_
        return
    context = multiprocessing.get_context("spawn")
    start = (renderer.data.model_dump(mode="json"), spell(renderer.objective), renderer.tokenizer)
    waiting: deque[tuple[Future[list[Any]], Format]] = deque()
    with ProcessPoolExecutor(processes, context, _start_worker, start) as pool:
        for rows, format_ in render.chunks(one):
            waiting.append((pool.submit(_render_in_worker, rows, spell(format_)), format_))
            while len(waiting) > 2 * processes:  # memory stays flat in the number of rows
                done, used = waiting.popleft()
                yield done.result(), used
        for done, used in waiting:
            yield done.result(), used


def _start_worker(data: dict[str, Any], objective: dict[str, Any], tokenizer: Any) -> None:
    """Build this process's renderer; components travel as options because a user's file is no importable module."""
    from tunesmith.component import pick
    from tunesmith.recipe import Data
    from tunesmith.seams import Objective

    built = pick(Objective, objective)
    assert isinstance(built, Objective)
    _worker["renderer"] = Renderer(Data.model_validate(data), built, tokenizer)


def _render_in_worker(rows: list[Row], format_: dict[str, Any]) -> list[Any]:
    from tunesmith.component import pick

    built: Component = pick(Format, format_)
    assert isinstance(built, Format)
    return _worker["renderer"].render(rows, built)


def _refuse_empty(counts: ledger.Ledger) -> None:
    found = counts.as_dict()
    if not found["samples"]:
        reasons = "; ".join(
            f"{entry['count']} × {reason} ({', '.join(entry['first'])})"
            for reason, entry in found["dropped"].items()
        )
        raise DataError(
            f"none of the {found['rows_read']} rows can be trained on: {reasons or 'there are no rows'}"
        )
