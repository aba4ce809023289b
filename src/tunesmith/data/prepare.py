"""Sources to a store: rendered in one process or many, kept under a key that holds all that matters."""

import contextlib
import hashlib
import inspect
import json
import multiprocessing
import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.component import Component, name_of, spell
from tunesmith.data import ledger, render, source
from tunesmith.data.render import Renderer, Row
from tunesmith.data.store import Store, StoreWriter, is_whole
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe, Source
from tunesmith.seams import Format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIBRARIES = ("transformers", "tokenizers", "jinja2")  # whose version can change a token
PROCESS_BYTES = 64_000_000  # less than this renders faster than a process starts

_worker: dict[str, Renderer] = {}  # filled once in each rendering process, empty in the parent


def prepare(recipe: Recipe, sources: tuple[Source, ...], tokenizer: "PreTrainedTokenizerBase") -> Store:
    """The rendered samples of some sources, for a prepared tokenizer; from the cache when they lie there.

    Those of a component without a file (defined in a notebook) are not kept: what its code calls cannot be known.

    Raises:
        DataError: a source cannot be read, a row is not of its format, or no row is left.
        TemplateError: a conversation cannot be written or trained as asked.
        ModelError: the tokenizer cannot be used to train.
    """
    renderer = Renderer(recipe.data, recipe.objective, tokenizer)
    with contextlib.ExitStack() as stack:
        if all(_has_file(kind) for kind in _kinds(recipe, sources)):
            folder = cache_folder(recipe.data.cache_dir) / cache_key(recipe, sources, tokenizer)
        else:
            folder = stack.enter_context(_passing_folder())
        cached = is_whole(folder)
        if not cached:
            with StoreWriter(folder) as writer:
                for one in sources:
                    _fill(writer, one, renderer, _processes(recipe, one))
                _refuse_empty(writer.ledger)
        return Store.open(folder, cached)


def prepare_rows(recipe: Recipe, rows: Iterable[Any], tokenizer: "PreTrainedTokenizerBase") -> Store:
    """The same for rows of a Python iterable, read with the format of the first of data.train; not cached.

    Raises:
        DataError: also when a row is no mapping.
    """
    one = recipe.data.train[0]
    renderer = Renderer(recipe.data, recipe.objective, tokenizer)
    format_: Format | None = None
    placed = iter(_placed(rows))
    with _passing_folder() as folder:
        with StoreWriter(folder) as writer:
            while chunk := list(islice(placed, render.CHUNK_ROWS)):
                format_ = format_ or render.format_of(one, chunk[0][1], chunk[0][0])
                writer.add(renderer.render(chunk, format_))
            _refuse_empty(writer.ledger)
        return Store.open(folder, cached=False)


@contextlib.contextmanager
def _passing_folder() -> Iterator[Path]:
    """A place for a store that is not kept: its arrays stay mapped when the files are removed.

    Where they cannot be removed then (Windows), they are left.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-rows-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "store"


def _placed(rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"rows:{number} must be a mapping of columns and is a {type(row).__name__}")
        yield f"rows:{number}", row


def cache_folder(chosen: str | None) -> Path:
    """Where stores are kept: as the recipe says, or tunesmith's folder in the user's cache."""
    if chosen is not None:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tunesmith" / "rendered"


def cache_key(recipe: Recipe, sources: tuple[Source, ...], tokenizer: "PreTrainedTokenizerBase") -> str:
    """A name that changes with anything that could change a rendered token or the ledger."""
    tokenizer("")  # an earlier call may have left padding or truncation in the tokenizer; every call sets them anew
    parts = {
        "sources": [source.fingerprint(one) for one in sources],
        "template": spell(recipe.data.template),
        "chat_template": tokenizer.chat_template,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "max_tokens": recipe.data.max_tokens,
        "overlong": recipe.data.overlong,
        "objective": spell(recipe.objective),
        "code": sorted(_digest(path) for path in _code(recipe, sources)),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _code(recipe: Recipe, sources: tuple[Source, ...]) -> set[Path]:
    """The files whose code reads and renders rows: the package's own, and those of a user's components."""
    package = Path(__file__).parent.parent
    shipped = [path for folder in ("data", "formats", "templates") for path in (package / folder).glob("*.py")]
    return {package / "types.py", *shipped, *(Path(inspect.getfile(kind)) for kind in _kinds(recipe, sources))}


def _kinds(recipe: Recipe, sources: tuple[Source, ...]) -> set[type[Component]]:
    used: list[Component] = [recipe.data.template, recipe.objective, *(one.format for one in sources)]
    return {kind for one in used for kind in type(one).__mro__ if issubclass(kind, Component)}


def _has_file(kind: type[Component]) -> bool:
    return getattr(sys.modules[kind.__module__], "__file__", None) is not None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _processes(recipe: Recipe, one: Source) -> int:
    if recipe.data.num_processes is not None:
        return recipe.data.num_processes
    size = sum(path.stat().st_size for path in source.local_files(one))
    return max(1, min(_processors(), size // PROCESS_BYTES))


def _processors() -> int:
    """The processors that this process may use: a container or a scheduler gives fewer than there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


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
    """Build this process's renderer. Components travel as options: a user's file is no importable module."""
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
            f"{entry['count']} × {reason} ({', '.join(entry['first'])})" for reason, entry in found["dropped"].items()
        )
        raise DataError(f"none of the {found['rows_read']} rows can be trained on: {reasons or 'there are no rows'}")
