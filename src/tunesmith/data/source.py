"""Rows of a source, wherever they lie: local files, the data inside this package, a dataset of the hub."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.component import spell
from tunesmith.data import files
from tunesmith.errors import DataError, near
from tunesmith.recipe import Source

BUILTIN = "builtin:"
BUILTIN_FOLDER = Path(__file__).parent.parent / "builtin"
BUILTIN_SPLITS = {"identity": ("train", "eval")}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*|[A-Za-z0-9][\w-]*", re.ASCII)
DEFAULT_SPLIT = Source.model_fields["split"].default
LONGEST_REASON = 300  # characters of another library's message


def read(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a source with where each stands (`file:17`), lazily and in file order.

    `columns` renames, `replace` changes texts and `num_samples` ends the stream. The number in `where` is that of
    `files.rows`, and for a dataset that `datasets` loads the row's, from 1.

    Raises:
        DataError: a file is missing or broken, there is no row, or a row lacks a column that `columns` names.
    """
    where = ""
    for where, row in islice(_rows(source), source.num_samples):
        row = _renamed(row, source.columns, where) if source.columns else row
        yield where, _replaced(row, source.replace) if source.replace else row
    if not where:
        raise DataError(f"{source.path} has no rows: it is empty, or holds a header alone")


def local_files(source: Source) -> list[Path]:
    """The files on this machine that a source reads, in order; none for a dataset of the hub.

    Raises:
        DataError: there is no such file, or a glob or folder without one that can be read.
    """
    if _is_hub_id(source.path):
        return []
    if _is_copy(source):
        return [Path(path) for path in _below(source.path) if files.kind_of(path)]
    return [Path(file) for _, file in _named_files(source)]


def fingerprint(source: Source) -> str:
    """A digest of all that decides the rows of a source and what they are called: 64 hexadecimal digits.

    That is the content, order and names of the files, and the source's options. A dataset of the hub is
    loaded, and the files that `datasets` made of it count.

    Raises:
        DataError: as `read`, for what is missing or cannot be opened.
    """
    if _is_hub_id(source.path):
        named = [(source.path, part["filename"]) for part in _load(source).cache_files]
    elif _is_copy(source):
        named = [(path, path) for path in _below(source.path)]
    else:
        named = _named_files(source)
    parts = source.model_dump(exclude={"format"}) | {
        "format": spell(source.format),
        "files": [(label, _digest(file)) for label, file in named],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _renamed(row: dict[str, Any], columns: dict[str, str], where: str) -> dict[str, Any]:
    """The row with the columns that a format expects under its names; the others stay."""
    for name, column in columns.items():
        if column not in row:
            raise DataError(
                f"{where}: `columns` takes {name} from {column!r}, no column of the row. {near(column, row)}"
            )
    taken = set(columns.values())
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {name: row[column] for name, column in columns.items()}


def _replaced(value: Any, texts: dict[str, str]) -> Any:
    """The value with every text in it changed, at any depth."""
    if isinstance(value, str):
        for old, new in texts.items():
            value = value.replace(old, new)
    elif isinstance(value, dict):
        return {name: _replaced(inner, texts) for name, inner in value.items()}
    elif isinstance(value, list):
        return [_replaced(inner, texts) for inner in value]
    return value


def _rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    if _is_hub_id(source.path) or _is_copy(source):
        with _told_as_ours(source):
            for number, row in enumerate(_load(source), 1):
                yield f"{source.path}:{number}", files.without_nulls(row)
        return
    for label, file in _named_files(source):
        for number, row in files.rows(file, source.name):
            yield f"{label}:{number}", row


def _named_files(source: Source) -> list[tuple[str, str]]:
    """The files of a source and what places in them are called."""
    if source.path.startswith(BUILTIN):
        return [(source.path, _builtin_file(source))]
    found = _found(os.path.expanduser(source.path))
    if source.split != DEFAULT_SPLIT:
        raise DataError(f"{source.path} is read whole, and has no split {source.split!r}; leave `split` out")
    if source.name is not None and not any(files.kind_of(name) == ".xlsx" for name in found):
        raise DataError(
            f"{source.path}: `name` {source.name!r} is a workbook's sheet or a hub dataset's configuration, "
            "and this is neither; leave `name` out"
        )
    return [(name, name) for name in found]


def _builtin_file(source: Source) -> str:
    name = source.path.removeprefix(BUILTIN)
    if name not in BUILTIN_SPLITS:
        known = [BUILTIN + one for one in BUILTIN_SPLITS]
        raise DataError(f"there is no built-in data {source.path!r}. {near(source.path, known)}")
    if source.split not in BUILTIN_SPLITS[name]:
        raise DataError(f"{source.path} has no split {source.split!r}. {near(source.split, BUILTIN_SPLITS[name])}")
    return str(BUILTIN_FOLDER / f"{name}-{source.split}.jsonl")


def _found(path: str) -> list[str]:
    """The files that a path says, sorted: itself, those directly in a folder, or those a glob matches."""
    suffixes = ", ".join(files.KINDS)
    if os.path.isdir(path):
        found = _supported_in(path)
        if not found:
            raise DataError(f"the folder {path} has no file that can be read: {suffixes}, each also with .gz")
        return found
    if os.path.exists(path):
        if not files.kind_of(path):
            raise DataError(f"{path}: its name must end in one of {suffixes}, each also with .gz")
        return [path]
    if glob.has_magic(path):
        matched = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
        found = [name for name in matched if files.kind_of(name)]
        if not found:
            said = f"only {', '.join(matched[:3])}, which cannot be read" if matched else "no file"
            raise DataError(f"{path} matches {said}; readable are {suffixes}, each also with .gz")
        return found
    raise DataError(f"there is no file {path}{_hint(path)}")


def _supported_in(folder: str) -> list[str]:
    paths = (os.path.join(folder, name) for name in sorted(_listed(folder)))
    return [path for path in paths if files.kind_of(path) and os.path.isfile(path)]


def _below(folder: str) -> list[str]:
    """Every file in a folder and the folders below, sorted, but hidden ones."""
    found = glob.glob(os.path.join(glob.escape(folder), "**", "*"), recursive=True)
    return sorted(path for path in found if os.path.isfile(path))


def _listed(folder: str) -> list[str]:
    """The names in a folder but hidden ones."""
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from None


def _hint(path: str) -> str:
    """What there is near a path that is missing."""
    folder, name = os.path.split(path)
    if not os.path.isdir(folder or "."):
        return f": there is no folder {folder}"
    names = _listed(folder or ".")
    with_suffix = [one for one in names if one.startswith(f"{name}.")]
    if not names:
        return f": the folder {folder or '.'} is empty"
    return f". {near(min(with_suffix, default=name), names)}"


def _is_hub_id(path: str) -> bool:
    """Whether a path names a dataset of the hub: `owner/name` or `name`, and nothing here is called so."""
    return bool(HUB_ID.fullmatch(path)) and not files.kind_of(path) and not os.path.exists(path)


def _is_copy(source: Source) -> bool:
    """Whether a folder is a hub dataset's copy: a split is asked for, or all files lie in folders below."""
    path = source.path
    if not os.path.isdir(path):
        return False
    return source.split != DEFAULT_SPLIT or not _supported_in(path) and any(map(files.kind_of, _below(path)))


def _load(source: Source) -> Any:
    """The dataset of a hub id, by way of the cache of `datasets`, or of a local copy of one, streamed.

    The cache knows a local copy by its folder's name alone, and would give old rows when the copy changes.
    """
    import datasets

    with _told_as_ours(source):
        return datasets.load_dataset(source.path, source.name, split=source.split, streaming=_is_copy(source))


@contextmanager
def _told_as_ours(source: Source) -> Iterator[None]:
    """What `datasets` and the libraries below it raise, as one DataError."""
    import pyarrow
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    # The HTTP library's own base class, which is httpx's or httpx2's as the hub's version has it.
    transport = HfHubHTTPError.__bases__
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, DatasetsError, pyarrow.ArrowException, *transport) as error:
        cause = f": {error.__cause__}" if isinstance(error, DatasetsError) and error.__cause__ else ""
        reason = f"{' '.join(f'{error}{cause}'.split())[:LONGEST_REASON]} ({type(error).__name__})"
        if os.path.isdir(source.path):
            raise DataError(f"{source.path} cannot be read as the copy of a hub dataset: {reason}") from None
        beside = glob.glob(f"{source.path}.*")
        hint = f". Did you mean the file {min(beside)}?" if beside else ""
        raise DataError(f"{source.path}: no file here, and no hub dataset that loads: {reason}{hint}") from None
