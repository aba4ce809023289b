"""Rendered samples on disk, read by memory map: flat in memory, and never half there.

A store is a folder of raw little-endian arrays and `meta.json`. It is written beside its place and renamed
when complete, so that an interrupted write is never read; what is left of one is removed by a later write.

Letters: T tokens, B branches, M samples.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from tunesmith.data.ledger import Ledger
from tunesmith.data.render import Rendered
from tunesmith.errors import DataError
from tunesmith.types import Tokens

ARRAYS: dict[str, np.dtype] = {
    "ids": np.dtype("<i4"),  # [T]
    "weight": np.dtype("<f4"),  # [T]
    "branch_tokens": np.dtype("<i8"),  # [B] tokens of each branch
    "sample_branches": np.dtype("<i8"),  # [M] branches of each sample
    "label": np.dtype("<f4"),  # [M]
    "row": np.dtype("<i8"),  # [M] number of the row that each sample comes from; the parts of a split row share it
}
META = "meta.json"
UNFINISHED = ".tunesmith-unfinished-"  # begins the name of a folder that is being written
DEAD_SECONDS = 3600  # a writer that wrote nothing for so long was killed


@dataclass(frozen=True, eq=False)
class Store:
    """Samples that are ready to be packed."""

    ids: np.ndarray
    weight: np.ndarray
    token_offsets: np.ndarray  # [B+1]
    branch_offsets: np.ndarray  # [M+1]
    label: np.ndarray
    row: np.ndarray
    ledger: Ledger
    notes: tuple[str, ...]  # what was chosen for the user and must be said
    digest: str  # of every token, weight and label, in order
    cached: bool

    @classmethod
    def open(cls, folder: Path, cached: bool) -> "Store":
        """Map the arrays of a store."""
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        arrays = {name: _mapped(folder / name, kind) for name, kind in ARRAYS.items()}
        return cls(
            ids=arrays["ids"],
            weight=arrays["weight"],
            token_offsets=np.concatenate([[0], np.cumsum(arrays["branch_tokens"])]),
            branch_offsets=np.concatenate([[0], np.cumsum(arrays["sample_branches"])]),
            label=arrays["label"],
            row=arrays["row"],
            ledger=Ledger.from_dict(meta["ledger"]),
            notes=tuple(meta["notes"]),
            digest=meta["digest"],
            cached=cached,
        )

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.label)

    def branches(self, sample: int) -> list[Tokens]:
        """The token sequences of a sample."""
        first, last = self.branch_offsets[sample], self.branch_offsets[sample + 1]
        bounds = self.token_offsets[first : last + 1]
        return [Tokens(self.ids[a:b], self.weight[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]

    def lengths(self) -> np.ndarray:
        """The tokens of each sample, all branches together: [M]."""
        return np.diff(self.token_offsets[self.branch_offsets])


def is_whole(folder: Path) -> bool:
    """Whether a store lies in a folder, with every byte that was written: a dying machine loses some."""
    try:
        sizes = json.loads((folder / META).read_text(encoding="utf-8"))["bytes"]
        return all((folder / name).stat().st_size == sizes[name] for name in ARRAYS)
    except (OSError, ValueError, KeyError):
        return False


class StoreWriter:
    """Writes a store beside `folder`; leaving the `with` block without an error puts it there.

    Raises:
        DataError: the cache folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger()
        self.notes: list[str] = []
        self._row = -1
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_dead(folder.parent)
            self._work = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
        except OSError as error:
            reason = f"rendered rows cannot be kept in {folder.parent}: {error.strerror}"
            raise DataError(f"{reason}. Say data.cache_dir=FOLDER") from error
        self._files: dict[str, IO[bytes]] = {name: open(self._work / name, "wb") for name in ARRAYS}
        self._digests = {name: hashlib.sha256() for name in ARRAYS}

    def __enter__(self) -> "StoreWriter":
        return self

    def add(self, samples: Iterable[Rendered]) -> None:
        """Count some samples and write those that are kept."""
        for one in samples:
            self.ledger.add(one)
            self._row += one.part == 0
            if one.dropped is not None:
                continue
            for tokens in one.branches:
                self._write("ids", tokens.ids)
                self._write("weight", tokens.weight)
            self._write("branch_tokens", [len(tokens) for tokens in one.branches])
            self._write("sample_branches", [len(one.branches)])
            self._write("label", [np.nan if one.label is None else one.label])
            self._write("row", [self._row])

    def _write(self, name: str, values: Any) -> None:
        written = np.asarray(values, ARRAYS[name]).tobytes()
        self._files[name].write(written)
        self._digests[name].update(written)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with contextlib.ExitStack() as files:
                for file in self._files.values():
                    files.push(file)
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _publish(self) -> None:
        sizes = {name: (self._work / name).stat().st_size for name in ARRAYS}
        digest = hashlib.sha256(b"".join(self._digests[name].digest() for name in ARRAYS)).hexdigest()
        counts = self.ledger.as_dict()
        meta = {"ledger": counts, "notes": self.notes, "digest": digest, "bytes": sizes}
        (self._work / META).write_text(json.dumps(meta), encoding="utf-8")
        if not is_whole(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
        try:
            os.replace(self._work, self.folder)
        except OSError:
            if not is_whole(self.folder):  # else another process published the same store first
                raise


def _remove_dead(parent: Path) -> None:
    """Remove what killed writers left."""
    for folder in parent.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another process may remove or publish it now
            written = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
            if time.time() - written > DEAD_SECONDS:
                shutil.rmtree(folder)


def _mapped(path: Path, kind: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, kind)
    return np.memmap(path, kind, "r").view(np.ndarray)  # a slice of a plain array is cheaper
