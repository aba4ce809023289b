"""Sources to a store: rendered in one process or many, kept under a key that holds all that matters."""

import contextlib
import hashlib
import inspect
import json
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.component import Component, spell
from tunesmith.data import ledger, prompt, registry, render, source
from tunesmith.data.digests import user_cache
from tunesmith.data.refuse import Tolerance
from tunesmith.data.render import Renderer, Row
from tunesmith.data.rendered import Rendered
from tunesmith.data.store import Store, StoreWriter, is_whole
from tunesmith.data.workers import Workers
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe
from tunesmith.recipe_data import Source
from tunesmith.seams import Format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIBRARIES = ("transformers", "tokenizers", "jinja2")  # whose version can change a token
GIVEN = "rows"  # what the rows of a Python iterable are called in places and in the account
PROCESS_BYTES = 64_000_000  # less than this renders faster than a process starts


def prepare(recipe: Recipe, sources: tuple[Source, ...], tokenizer: "PreTrainedTokenizerBase") -> Store:
    """The rendered samples of some sources, for a prepared tokenizer; from the cache when they lie there.

    Those of a component without a file (defined in a notebook) are not kept: what its code calls cannot be known.

    Raises:
        DataError: a source cannot be read, a row is not of its format, or no row is left.
        TemplateError: a conversation cannot be written or trained as asked.
        ModelError: the tokenizer cannot be used to train.
    """
    sources = registry.resolved(recipe.data, sources)
    renderer = Renderer(recipe.data, recipe.objective, tokenizer)
    states = _states(sources)
    with contextlib.ExitStack() as stack:
        if all(_has_file(kind) for kind in _kinds(recipe, sources)):
            folder = cache_folder(recipe.data.cache_dir) / cache_key(recipe, sources, tokenizer)
        else:
            folder = stack.enter_context(_passing_folder())
        cached = is_whole(folder)
        if not cached:
            with StoreWriter(folder) as writer:
                writer.notes += (*registry.notes(sources), *prompt.notes(tokenizer))
                for one, name in zip(sources, ledger.source_names(sources), strict=True):
                    _fill(writer, name, one, source.read(one), renderer, processes_for(recipe, one))
                _refuse_changed(states, _states(sources))
                _refuse_empty(writer.ledger)
        return Store.open(folder, cached)


def prepare_rows(recipe: Recipe, rows: Iterable[Any], tokenizer: "PreTrainedTokenizerBase") -> Store:
    """The same for rows of a Python iterable, read with the format of the first of data.train; not cached.

    Raises:
        DataError: also when a row is no mapping.
    """
    one = recipe.data.train[0]
    renderer = Renderer(recipe.data, recipe.objective, tokenizer)
    placed = islice(placed_rows(rows), one.num_samples)
    with _passing_folder() as folder:
        with StoreWriter(folder) as writer:
            writer.notes += prompt.notes(tokenizer)
            _fill(writer, GIVEN, one, placed, renderer, recipe.data.num_processes or 1)
            _refuse_empty(writer.ledger)
        return Store.open(folder, cached=False)


@contextlib.contextmanager
def _passing_folder() -> Iterator[Path]:
    """A place for a store that is not kept: its arrays stay mapped when the files are removed.

    Where they cannot be removed then (Windows), they are left.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-rows-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "store"


def placed_rows(rows: Iterable[Any]) -> Iterator[Row]:
    """The rows of a Python iterable, with the number of each. Raises DataError for one that is no mapping."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"{GIVEN}:{number} must be a mapping of columns and is a {type(row).__name__}")
        yield f"{GIVEN}:{number}", row


def cache_folder(chosen: str | None) -> Path:
    """Where stores are kept: as the recipe says, or tunesmith's folder in the user's cache."""
    if chosen is not None:
        return Path(chosen).expanduser()
    return user_cache() / "rendered"


def cache_key(recipe: Recipe, sources: tuple[Source, ...], tokenizer: "PreTrainedTokenizerBase") -> str:
    """A name that changes with anything that could change a rendered token or the ledger."""
    parts = {
        "sources": [source.fingerprint(one) for one in sources],
        "template": [spell(recipe.data.template), recipe.data.template.divides()],
        "document_end": recipe.data.template.document_end(tokenizer),
        "loss": recipe.data.loss.model_dump(mode="json"),
        "tokenizer": tokenizer_identity(tokenizer),
        "max_tokens": recipe.data.max_tokens,
        "overlong": recipe.data.overlong,
        "shared_prefix": recipe.data.shared_prefix,
        "objective": spell(recipe.objective),
        "code": sorted(_digest(path) for path in _code(recipe, sources)),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_identity(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """All of a tokenizer that decides which tokens it writes."""
    tokenizer("")  # an earlier call may have left padding or truncation in it; every call sets them anew
    return {
        "backend": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "chat_template": tokenizer.chat_template,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }


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


def processes_for(recipe: Recipe, one: Source) -> int:
    """How many processes render a source: as the recipe says, or by the size of its files."""
    if recipe.data.num_processes is not None:
        return recipe.data.num_processes
    size = sum(path.stat().st_size for path in source.files_here(one))
    return max(1, min(_processors(), size // PROCESS_BYTES))


def _processors() -> int:
    """The processors that this process may use: a container or a scheduler gives fewer than there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _fill(writer: StoreWriter, name: str, one: Source, rows: Iterator[Row], renderer: Renderer, processes: int) -> None:
    """Render the rows of a source, its chunks in file order whatever the number of processes."""
    said, tolerance = False, Tolerance()
    writer.begin(name)
    for samples, format_ in _rendered_chunks(render.chunks(one, rows), renderer, processes):
        tolerance.look(samples)
        if not said:
            writer.notes += render.format_notes(name, one, format_)
        said = True
        writer.add(samples)
    tolerance.end()


def _rendered_chunks(
    chunks: Iterator[tuple[list[Row], Format]], renderer: Renderer, processes: int
) -> Iterator[tuple[list[Rendered], Format]]:
    waiting: deque[tuple[Callable[[], list[Rendered]], Format]] = deque()
    with contextlib.closing(Workers(renderer, processes)) as workers:
        for number, (rows, format_) in enumerate(chunks):
            waiting.append((workers.submit(rows, format_, first=number == 0), format_))
            while len(waiting) > workers.ahead:  # memory stays flat in the number of rows
                done, used = waiting.popleft()
                yield done(), used
        for done, used in waiting:
            yield done(), used


def _states(sources: Iterable[Source]) -> dict[Path, tuple[int, ...]]:
    """What tells that a file of the sources is another one, or was written to."""
    found = {path: path.stat() for one in sources for path in source.files_here(one)}
    return {path: (one.st_size, one.st_mtime_ns, one.st_dev, one.st_ino) for path, one in found.items()}


def _refuse_changed(before: Mapping[Path, object], after: Mapping[Path, object]) -> None:
    """Raise DataError when files changed while they were read: what was kept would be called by what they were."""
    changed = sorted(str(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if changed:
        raise DataError(f"{changed[0]} changed while it was read: run the command again when it is whole")


def _refuse_empty(counts: ledger.Ledger) -> None:
    found = counts.as_dict()
    if not found["samples"]:
        reasons = "; ".join(
            f"{entry['count']} × {reason} ({', '.join(entry['first'])})" for reason, entry in found["dropped"].items()
        )
        raise DataError(f"none of the {found['rows_read']} rows can be trained on: {reasons or 'there are no rows'}")
