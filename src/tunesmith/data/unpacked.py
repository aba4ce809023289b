"""The bytes of a file, here or far away, decompressed: what they begin with says how, whatever the name."""

import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from tunesmith.data import remote
from tunesmith.errors import DataError

MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
SUFFIXES = {".gz": "gzip", ".zst": "zstd"}


def without_suffix(name: str) -> str:
    """A lower-case file name without .gz or .zst."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """A file's bytes, decompressed: a binary file with `peek`.

    Raises:
        DataError: a file is named .gz or .zst and is not, or its compressed data is broken or cut off.
        OSError: the file cannot be read.
    """
    with remote.opened(path) if remote.is_remote(path) else open(path, "rb") as raw:
        head = raw.peek(max(map(len, MAGIC.values())))
        found = next((kind for kind, magic in MAGIC.items() if head.startswith(magic)), None)
        if found is not None:
            with _whole(path, found), _decompressed(raw, found) as file:
                yield file
            return
        for suffix, kind in SUFFIXES.items():
            if path.lower().endswith(suffix):
                raise DataError(f"{path} is named {suffix} and is not {kind} data; rename it or compress it")
        yield raw


def _decompressed(raw: Any, kind: str) -> Any:
    if kind == "gzip":
        return gzip.open(raw)
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, kind), remote.BUFFER_BYTES)


@contextmanager
def _whole(path: str, kind: str) -> Iterator[None]:
    """What says that compressed data is broken, as a DataError. What the system raises has a number."""
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        said = f"its {kind} data is broken or cut off ({error}); fetch or compress it again"
        raise DataError(f"{path}: {said}") from None


@contextmanager
def seekable(file: Any) -> Iterator[IO[bytes]]:
    """The same bytes with random access, which formats with a directory at their end need."""
    if file.seekable() and not isinstance(file, gzip.GzipFile):
        yield file
        return
    with tempfile.TemporaryFile() as whole:
        shutil.copyfileobj(file, whole)
        whole.seek(0)
        yield whole
