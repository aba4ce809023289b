"""Files and folders that appear whole or not at all: made beside their place, put on the disk, then renamed.

A program that dies at any moment leaves the old content or the new, and at most something whose name begins with a
dot and ends in `.partial`.
"""

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tunesmith.errors import TunesmithError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, the largest file of a file system or user
WINDOWS_DISK_FULL = 112
OS_ERROR = re.compile(r"\(os error (\d+)\)$")  # how libraries written in Rust end the message of a system's error


def write(path: Path, content: bytes) -> None:
    """Write a file, in place of one that may be there."""
    with written(path) as file:
        file.write(content)


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, that takes the place of one that may be there when the block ends well."""
    work = partial(path)
    try:
        with work.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        work.replace(path)
        flush(path.parent)
    finally:
        work.unlink(missing_ok=True)


def _never(found: Path) -> bool:
    return False


@contextmanager
def folder(final: Path, work: Path | None = None, replace: Callable[[Path], bool] = _never) -> Iterator[Path]:
    """A folder to fill, that takes the name `final` when the block ends well and is removed when it does not.

    `work` is an empty folder of the caller's own beside `final`, for several programs that make the same one; without
    it, what a program that was killed left is removed. `replace` says whether a folder that holds something gives way;
    an empty one always does.

    Raises:
        FileExistsError: there is a folder that does not give way.
    """
    if work is None:
        work = partial(final)
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir(parents=True)
        except OSError as error:  # it is named by what was asked for
            raise OSError(error.errno, error.strerror, str(final)) from error
    try:
        yield work
        for path in [*work.rglob("*"), work]:
            flush(path)
        _rename(work, final, replace)
        flush(final.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def partial(final: Path) -> Path:
    """Where something is made before it takes its name."""
    return final.with_name(f".{final.name}.partial")


def _rename(work: Path, final: Path, replace: Callable[[Path], bool]) -> None:
    while True:
        try:
            os.replace(work, final)
            return
        except OSError:
            if not final.is_dir():
                raise
            if any(final.iterdir()) and not replace(final):
                raise FileExistsError(errno.EEXIST, "there is such a folder, and it is not empty", str(final)) from None
        with suppress(FileNotFoundError):  # another program may remove it now
            shutil.rmtree(final)  # an empty one too, onto which Windows does not rename


def flush(path: Path) -> None:
    """Have the system put a file, or the names in a folder, on the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # the names are written with the files, and a folder cannot be opened
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)  # Windows flushes what it may write
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def room(place: Path, kind: type[TunesmithError], advice: str) -> Iterator[None]:
    """Turn a full disk in this block into one line: the folder, what is free on its disk, and what to do.

    Raises:
        TunesmithError: of the `kind`; there was no room for something in `place`.
    """
    try:
        yield
    except Exception as error:
        reason = no_room(error)
        if reason is None:
            raise
        free = f"{_free_bytes(place) / 1e6:,.1f} MB are free on its disk"
        raise kind(f"{place} cannot be written: {reason} ({free}). {advice}") from error


def no_room(error: BaseException) -> str | None:
    """What a full disk is called in an error, be it the system's or a library's that holds one; None in any other."""
    if isinstance(error, OSError):
        code = error.errno
    else:
        match = OS_ERROR.search(str(error))
        code = int(match[1]) if match else None
        if sys.platform == "win32" and code == WINDOWS_DISK_FULL:
            code = errno.ENOSPC
    return os.strerror(code) if code in NO_ROOM else None


def _free_bytes(place: Path) -> int:
    """The room on the disk of a folder that is there or was to be made."""
    found = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.exists())
    return shutil.disk_usage(found).free
