"""Rendered samples on disk, read by memory map: flat in memory, and never half there.

A store is a folder of raw little-endian arrays and `meta.json`. It is written beside its place and renamed when
complete, so that an interrupted write is never read.

Letters: T tokens, B branches, M samples.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from tunesmith.data.ledger import Ledger
from tunesmith.data.render import Rendered
from tunesmith.types import Tokens

ARRAYS = {
    "ids": np.dtype("<i4"),  # [T]
    "weight": np.dtype("<f4"),  # [T]
    "branch_tokens": np.dtype("<i8"),  # [B] tokens of each branch
    "sample_branches": np.dtype("<i8"),  # [M] branches of each sample
    "label": np.dtype("<f4"),  # [M]
}


@dataclass(frozen=True, eq=False)
class Store:
    """Samples that are ready to be packed."""

    ids: np.ndarray
    weight: np.ndarray
    token_offsets: np.ndarray  # [B+1]
    branch_offsets: np.ndarray  # [M+1]
    label: np.ndarray
    ledger: Ledger
    notes: tuple[str, ...]  # what was chosen for the user and must be said
    cached: bool

    @classmethod
    def open(cls, folder: Path, cached: bool) -> "Store":
        """Map the arrays of a store."""
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: _mapped(folder / name, kind) for name, kind in ARRAYS.items()}
        return cls(
            ids=arrays["ids"],
            weight=arrays["weight"],
            token_offsets=np.concatenate([[0], np.cumsum(arrays["branch_tokens"])]),
            branch_offsets=np.concatenate([[0], np.cumsum(arrays["sample_branches"])]),
            label=arrays["label"],
            ledger=Ledger.from_dict(meta["ledger"]),
            notes=tuple(meta["notes"]),
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


class StoreWriter:
    """Writes a store in a temporary folder beside `folder`; leaving the `with` block without an error publishes it."""

    def __init__(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ledger = Ledger()
        self.notes: list[str] = []
        self._work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        self._files: dict[str, IO[bytes]] = {name: open(self._work / name, "wb") for name in ARRAYS}

    def __enter__(self) -> "StoreWriter":
        return self

    def add(self, samples: Iterable[Rendered]) -> None:
        """Count some samples and write those that are kept."""
        for one in samples:
            self.ledger.add(one)
            if one.dropped is not None:
                continue
            for tokens in one.branches:
                self._write("ids", tokens.ids)
                self._write("weight", tokens.weight)
            self._write("branch_tokens", [len(tokens) for tokens in one.branches])
            self._write("sample_branches", [len(one.branches)])
            self._write("label", [np.nan if one.label is None else one.label])

    def _write(self, name: str, values: Any) -> None:
        self._files[name].write(np.asarray(values, ARRAYS[name]).tobytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        if kind is None:
            meta = {"ledger": self.ledger.as_dict(), "notes": self.notes}
            (self._work / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
            with contextlib.suppress(OSError):  # another process published the same store first
                os.replace(self._work, self.folder)
        shutil.rmtree(self._work, ignore_errors=True)


def _mapped(path: Path, kind: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, kind)
    return np.memmap(path, kind, "r")
