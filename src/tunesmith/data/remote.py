"""Files that do not lie here: object stores and the web, by fsspec. No network unless a path says so."""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tunesmith.errors import DataError, MissingExtra, near

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
HUBS = ("hf", "ms", "om")  # read by data/hubs.py
CLIENTS = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}  # what fsspec needs for a protocol
IDENTITY = (  # what stores call the digest or the time of a file, one of which is enough beside its size
    "ETag", "etag", "md5Hash", "crc32c", "Content-MD5", "Digest",
    "LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created",
)  # fmt: skip
LONGEST_REASON = 300  # characters of a client's message
BUFFER_BYTES = 2**17


def is_remote(path: str) -> bool:
    """Whether a path is the address of a file far away: `s3://bucket/rows.jsonl`; those of hubs are not."""
    match = ADDRESS.match(path)
    return match is not None and match[1].lower() not in HUBS


def found(path: str, kind_of: Callable[[str], str], readable: str) -> list[str]:
    """The addresses that an address says, sorted: itself, those in a folder, or those a glob matches.

    Args:
        path: the address.
        kind_of: says how a file of a name is read, and nothing for one that is not.
        readable: the names that can be read, in words.

    Raises:
        DataError: there is no such thing, or nothing in it that can be read.
        MissingExtra: the protocol's client is not installed.
    """
    system, inner = _system(path)
    with _told_as_ours(path):
        if any(sign in inner for sign in "*["):
            names = system.glob(inner)
        elif system.info(inner)["type"] == "directory":
            names = system.ls(inner, detail=False)
        else:
            names = [path]
    addresses = sorted(system.unstrip_protocol(name) for name in names)
    kept = [address for address in addresses if kind_of(address)]
    if not kept:
        said = f"only {', '.join(addresses[:3])}, which cannot be read" if addresses else "no file"
        raise DataError(f"{path} says {said}; readable are {readable}")
    return kept


def identity(path: str) -> str:
    """What tells a remote file from itself after a change: the store's own digest or time, and the size.

    Where it says none, as some web servers do, the file is fetched and its content digested. Raises DataError.
    """
    system, inner = _system(path)
    with _told_as_ours(path):
        info = system.info(inner)
    known = {key: str(info[key]) for key in IDENTITY if info.get(key) is not None}
    if known:
        return json.dumps(known | {"size": info.get("size")}, sort_keys=True)
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """A remote file's bytes, fetched as they are read: a binary file with `peek`. Raises DataError, MissingExtra."""
    system, inner = _system(path)
    with _told_as_ours(path):
        file = system.open(inner, "rb")
    with file:
        one_way = getattr(file, "size", 0) is None  # a server that sends a file from its beginning alone
        with _told_as_ours(path), io.BufferedReader(_OneWay(file) if one_way else file, BUFFER_BYTES) as buffered:
            yield buffered


class _OneWay(io.RawIOBase):
    """A file that can be read and not searched."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        got = self.file.read(len(buffer))
        buffer[: len(got)] = got
        return len(got)


def _system(path: str) -> tuple[Any, str]:
    """The file system of an address, and the path within it."""
    import fsspec

    match = ADDRESS.match(path)
    assert match is not None
    protocol = match[1].lower()
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        known = [f"{name}://" for name in (*CLIENTS, *HUBS, "file", "memory")]
        raise DataError(f"{path}: nothing reads {protocol}://. {near(f'{protocol}://', known)}") from None
    except ImportError as error:
        command = f"pip install {CLIENTS[protocol]}" if protocol in CLIENTS else str(error)
        raise MissingExtra(f"{path} needs a client of {protocol}:// that is not installed: {command}") from None
    with _told_as_ours(path):
        return fsspec.core.url_to_fs(path)


@contextmanager
def _told_as_ours(path: str) -> Iterator[None]:
    """What clients of stores raise, as one DataError: each has its own errors, with `Exception` alone above them."""
    try:
        yield
    except (DataError, MissingExtra):
        raise
    except FileNotFoundError as error:
        cause = f" ({' '.join(str(error.__cause__).split())[:LONGEST_REASON]})" if error.__cause__ else ""
        raise DataError(f"there is no file {path}{cause}") from None
    except Exception as error:  # noqa: BLE001
        if type(error).__module__.partition(".")[0] in ("builtins", "tunesmith") and not isinstance(error, OSError):
            raise
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise DataError(f"{path} cannot be read: {reason} ({type(error).__name__})") from None
