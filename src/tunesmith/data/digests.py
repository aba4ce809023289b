"""Digests of files, those of large ones kept: a second start does not read a gigabyte to find that it is the same.

A digest that was kept counts for a file of the same place, size, inode and times of change (of content and of the
file's record, which no program can set back), if these were old when it was made: a later change leaves another time.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from tunesmith import atomic

LARGE_BYTES = 64_000_000  # a smaller file is read in a moment
SETTLED_SECONDS = 2.0  # the coarsest clock of a file system's times


def user_cache() -> Path:
    """Tunesmith's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"


def digest_of(path: str) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits. Raises OSError."""
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        if found.st_size < LARGE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        state = [found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
        kept = _place(path)
        with contextlib.suppress(OSError, ValueError):  # none is kept, or not whole
            before = json.loads(kept.read_text(encoding="utf-8"))
            if before["state"] == state:
                return str(before["sha256"])
        begun = time.time()
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if max(found.st_mtime, found.st_ctime) < begun - SETTLED_SECONDS:
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            kept.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(kept, json.dumps({"path": path, "state": state, "sha256": digest}).encode())
    return digest


def _place(path: str) -> Path:
    name = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return user_cache() / "digests" / f"{name}.json"
