"""Rows of a source, wherever they lie: files here or far away, the data inside this package, a dataset of a hub."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

from tunesmith.component import spell
from tunesmith.data import digests, files, hubs, remote
from tunesmith.errors import DataError, near
from tunesmith.recipe_data import Source

BUILTIN = "builtin:"
BUILTIN_FOLDER = Path(__file__).parent.parent / "builtin"
BUILTIN_SPLITS = {"identity": ("train", "eval")}
DEFAULT_SPLIT = Source.model_fields["split"].default
PIECES, PIECE_BYTES = 64, 2**20  # of a large file that is streamed
READABLE = ", ".join(files.KINDS) + ", each also with .gz or .zst"


class Registered(Source):
    """A source that a registry names: a row may lack a column that `columns` takes, if not all of them do."""

    registered: str
    """The name, as the recipe says it."""


def read(source: Source, streaming: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a source with where each stands (`file:17`), lazily and in file order.

    `share` takes a part of the rows, `num_samples` ends the stream, `columns` renames and `replace` changes texts. The
    number in `where` is that of `files.rows`, and for a dataset that `datasets` loads the row's, from 1. `streaming`
    reads a hub's dataset from the hub, and not by way of a copy on the disk.

    Raises:
        DataError: a file is missing or broken, there is no row, or a row lacks a column that `columns` names.
        MissingExtra: the client of a store or a hub is not installed.
    """
    where, lenient = "", isinstance(source, Registered)
    missing = dict(source.columns) if lenient else {}
    for where, row in islice(_shared(source, streaming), source.num_samples):
        for name in [name for name, column in missing.items() if column in row or name in row]:
            del missing[name]
        row = _renamed(row, source.columns, where, lenient) if source.columns else row
        try:
            row = _replaced(row, source.replace) if source.replace else row
        except RecursionError:
            raise DataError(f"{where} has lists or objects too deep in one another for `replace`") from None
        yield where, row
    if not where:
        raise DataError(f"{source.path} has no rows: it is empty, or holds a header alone")
    for name, column in missing.items():
        if column and source.num_samples is None:
            raise DataError(f"{source.path}: `columns` takes {name} from {column!r}, no column of any row. Remove it")


def _shared(source: Source, streaming: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows whose content falls in the part of the source that `share` says."""
    if source.share is None:
        yield from _rows(source, streaming)
        return
    part, _, whole = source.share.partition("/")
    first, _, last = part.partition("-")
    seen = kept = 0
    for where, row in _rows(source, streaming):
        seen += 1
        if int(first) <= _part(row, int(whole), where) <= int(last):
            kept += 1
            yield where, row
    if seen and not kept:
        raise DataError(f"{source.path}: none of the {seen} rows falls in the share {source.share}; take a larger one")


def _part(row: dict[str, Any], parts: int, where: str) -> int:
    """Which of so many parts a row is in, from 1: by its content as it was read, and nothing else."""
    try:
        text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=_plain)
    except TypeError as error:
        raise DataError(f"{where}: `share` divides rows by their content, and this one has {error}") from None
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") * parts >> 64) + 1


def _plain(value: Any) -> str:
    """A value that JSON has not: bytes, or what writes itself (a date, a decimal)."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, date | time | timedelta | Decimal | UUID):
        return str(value)
    raise TypeError(f"a {type(value).__name__}")


def local_files(source: Source) -> list[Path]:
    """The files on this machine that a source reads, in order; none for a dataset of a hub or a store far away.

    Raises:
        DataError: there is no such file, here or far away, or a glob or folder without one that can be read.
        MissingExtra: the client of a store is not installed.
    """
    if hubs.address(source.path):
        return []
    if _is_copy(source):
        return [Path(path) for path in _below(source.path) if files.kind_of(path)]
    return [Path(file) for _, file in _named_files(source) if not remote.is_remote(file)]


def files_here(source: Source) -> list[Path]:
    """The same without asking a store far away whether it has what the source names, which costs a request."""
    return [] if remote.is_remote(source.path) else local_files(source)


def fingerprint(source: Source, streaming: bool = False) -> str:
    """A digest of all that decides the rows of a source and what they are called: 64 hexadecimal digits.

    That is the content, order and names of the files, and the source's options. A dataset of a hub is
    loaded, and the files that `datasets` made of it count; of a file far away, what `remote.identity` says.
    Of what is streamed, a hub's dataset is not loaded, and of a large file its size and pieces count.

    Raises:
        DataError: as `read`, for what is missing or cannot be opened.
    """
    address = hubs.address(source.path)
    if address and address.hub == "hf":
        found = [] if streaming else hubs.load(source, address).cache_files
        named = [(source.path, part["filename"]) for part in found]
    elif address:
        folder = hubs.fetched(source.path, address)
        named = [(os.path.relpath(path, folder), path) for path in _below(folder)]
    elif _is_copy(source):
        named = [(path, path) for path in _below(source.path)]
    else:
        named = _named_files(source)
    digest = _digest_of_pieces if streaming else _digest
    parts = source.model_dump(exclude={"format", "weight"}) | {
        "format": spell(source.format),
        "files": [(label, remote.identity(file) if remote.is_remote(file) else digest(file)) for label, file in named],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(path: str) -> str:
    try:
        return digests.digest_of(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _digest_of_pieces(path: str) -> str:
    """Of a large file its size and some pieces, which tell it from another one in a moment."""
    size = os.path.getsize(path)
    if size <= PIECES * PIECE_BYTES:
        return _digest(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for number in range(PIECES):
            file.seek(number * (size - PIECE_BYTES) // (PIECES - 1))
            digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()


def _renamed(row: dict[str, Any], columns: dict[str, str], where: str, lenient: bool) -> dict[str, Any]:
    """The row with the columns that a format expects under its names, and without those that come from no column."""
    for name, column in columns.items():
        if column and column not in row and not lenient:
            raise DataError(
                f"{where}: `columns` takes {name} from {column!r}, no column of the row. {near(column, row)}"
            )
    taken = {column or name for name, column in columns.items()}
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {name: row[column] for name, column in columns.items() if column in row}


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


def _rows(source: Source, streaming: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    address = hubs.address(source.path)
    if address or _is_copy(source):
        with hubs.told_as_ours(source.path):
            dataset = hubs.load(source, address, streaming) if address else hubs.load_copy(source, source.path)
            for number, row in enumerate(dataset, 1):
                yield f"{source.path}:{number}", files.without_nulls(row)
        return
    for label, file in _named_files(source):
        for number, row in files.rows(file, source.name):
            yield f"{label}:{number}", row


def _named_files(source: Source) -> list[tuple[str, str]]:
    """The files of a source and what places in them are called."""
    if source.path.startswith(BUILTIN):
        return [(source.path, _builtin_file(source))]
    if remote.is_remote(source.path):
        found = remote.found(source.path, files.kind_of, READABLE)
    else:
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
    if os.path.isdir(path):
        found = _supported_in(path)
        if not found:
            raise DataError(f"the folder {path} has no file that can be read: {READABLE}")
        return found
    if os.path.exists(path):
        if not files.kind_of(path):
            raise DataError(f"{path}: its name must end in one of {READABLE}")
        return [path]
    if glob.has_magic(path):
        if "**" in path:
            _refuse_loop(_fixed_part(path))
        matched = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
        found = [name for name in matched if files.kind_of(name)]
        if not found:
            said = f"only {', '.join(matched[:3])}, which cannot be read" if matched else "no file"
            raise DataError(f"{path} matches {said}; readable are {READABLE}")
        return found
    raise DataError(f"there is no file {path}{beside(path)}")


def _supported_in(folder: str) -> list[str]:
    paths = (os.path.join(folder, name) for name in sorted(_listed(folder)))
    return [path for path in paths if files.kind_of(path) and os.path.isfile(path)]


def _below(folder: str) -> list[str]:
    """Every file in a folder and the folders below, sorted, but hidden ones."""
    _refuse_loop(folder)
    found = glob.glob(os.path.join(glob.escape(folder), "**", "*"), recursive=True)
    return sorted(path for path in found if os.path.isfile(path))


def _fixed_part(pattern: str) -> str:
    """The folder above the first part of a path that has a glob sign."""
    parts = pattern.split(os.sep)
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return os.sep.join(parts[:first]) or (os.sep if pattern.startswith(os.sep) else ".")


def _refuse_loop(top: str) -> None:
    """Raise DataError when a link below a folder leads to a folder above it: its files would be read again and again.

    Every folder is looked at once, however many links lead to it.
    """
    done: set[str] = set()
    ways: list[tuple[str, tuple[str, ...]]] = [(top, ())]
    while ways:
        folder, above = ways.pop()
        real = os.path.realpath(folder)
        if real in above:
            raise DataError(f"{folder} is a link to {real}, a folder that it lies in; take it away or name the folders")
        if real not in done:
            done.add(real)
            below = [os.path.join(folder, name) for name in _listed(folder)]
            ways += [(path, (*above, real)) for path in below if os.path.isdir(path)]


def _listed(folder: str) -> list[str]:
    """The names in a folder but hidden ones."""
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from None


def beside(path: str) -> str:
    """The end of a message about a path that is missing: what there is near it."""
    folder, name = os.path.split(path)
    if not os.path.isdir(folder or "."):
        return f": there is no folder {folder}"
    names = _listed(folder or ".")
    with_suffix = [one for one in names if one.startswith(f"{name}.")]
    if not names:
        return f": the folder {folder or '.'} is empty"
    return f". {near(min(with_suffix, default=name), names)}"


def _is_copy(source: Source) -> bool:
    """Whether a folder is a hub dataset's copy: a split is asked for, or all files lie in folders below."""
    path = source.path
    if not os.path.isdir(path):
        return False
    return source.split != DEFAULT_SPLIT or not _supported_in(path) and any(map(files.kind_of, _below(path)))
