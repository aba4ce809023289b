"""Rendered samples on disk, read by memory map: flat in memory, and never half there.

A store is a folder of raw little-endian arrays and `meta.json`. It is written beside its place and renamed
when complete, so that an interrupted write is never read; what is left of one is removed by a later write.

Letters: T tokens, B branches, M samples.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from tunesmith import atomic
from tunesmith.data.ledger import Ledger
from tunesmith.data.rendered import Rendered
from tunesmith.errors import DataError
from tunesmith.types import Tokens

TOKEN_LABEL = "token_label"
ARRAYS: dict[str, np.dtype] = {
    "ids": np.dtype("<i4"),  # [T]
    "weight": np.dtype("<f4"),  # [T]
    "branch_tokens": np.dtype("<i8"),  # [B] tokens of each branch
    "shared": np.dtype("<i8"),  # [B] of its first ones: those that stand in the branch before
    "sample_branches": np.dtype("<i8"),  # [M] branches of each sample
    "label": np.dtype("<f4"),  # [M], or [M * classes] where several can hold at once
    "row": np.dtype("<i8"),  # [M] number of the row that each sample comes from; the parts of a split row share it
    "source": np.dtype("<i4"),  # [M] which source it comes from
    "file": np.dtype("<i4"),  # [M] which file, and
    "line": np.dtype("<i8"),  # [M] where in it
    "trained": np.dtype("<i8"),  # [M] tokens of it that are learned
    "equals": np.dtype("<i8"),  # [M] the first sample with these tokens, weights and label: itself, mostly
    "key": np.dtype("<u8"),  # [2M] a digest of its token ids alone
    TOKEN_LABEL: np.dtype("<i4"),  # [T] the class of each token; empty where samples have none
}
CONTENT = (
    "ids",
    "weight",
    "branch_tokens",
    "shared",
    "sample_branches",
    "label",
    "row",
    TOKEN_LABEL,
)  # what decides what is learned
KEY_BYTES = 16
META = "meta.json"
UNFINISHED = ".tunesmith-unfinished-"  # begins the name of a folder that is being written
ELSEWHERE = "Say data.cache_dir=FOLDER"
DEAD_SECONDS = 3600  # a writer that wrote nothing for so long was killed


@dataclass(frozen=True, eq=False)
class Store:
    """Samples that are ready to be packed."""

    ids: np.ndarray
    weight: np.ndarray
    token_offsets: np.ndarray  # [B+1]
    branch_offsets: np.ndarray  # [M+1]
    shared: np.ndarray  # [B]
    label: np.ndarray
    row: np.ndarray
    source: np.ndarray
    file: np.ndarray
    line: np.ndarray
    trained: np.ndarray
    equals: np.ndarray
    key: np.ndarray  # [M, 2]
    token_label: np.ndarray  # [T], or [0] where samples have none
    files: tuple[str, ...]  # what the files are called
    sources: tuple[str, ...]  # and the sources
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
            key=arrays["key"].reshape(-1, 2),
            token_label=arrays[TOKEN_LABEL],
            label=_by_sample(arrays["label"], len(arrays["row"])),
            **{name: arrays[name] for name in ("shared", "row", "source", "file", "line", "trained", "equals")},
            files=tuple(meta["files"]),
            sources=tuple(meta["sources"]),
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
        parts = zip(bounds[:-1], bounds[1:], self.shared[first:last].tolist(), strict=True)
        if not len(self.token_label):
            return [Tokens(self.ids[a:b], self.weight[a:b], shared) for a, b, shared in parts]
        return [Tokens(self.ids[a:b], self.weight[a:b], shared, label=self.token_label[a:b]) for a, b, shared in parts]

    def lengths(self) -> np.ndarray:
        """The tokens that each sample takes in a row, all branches together and what they share once: [M]."""
        return self._lengths

    @cached_property
    def _lengths(self) -> np.ndarray:
        shared = np.concatenate([[0], np.cumsum(self.shared)])
        return np.diff((self.token_offsets - shared)[self.branch_offsets])

    def sides(self) -> np.ndarray:
        """The tokens of the two sequences of each sample, where each has two and they share nothing: [M, 2]."""
        return np.diff(self.token_offsets).reshape(-1, 2)

    def tokens(self) -> np.ndarray:
        """The tokens of each sample, all branches together and also what they share: [M]."""
        return np.diff(self.token_offsets[self.branch_offsets])

    def learned(self) -> np.ndarray:
        """Which tokens are learned (`Tokens.trained` counts them), in the order of `ids`: bool [T]."""
        if len(self.token_label):
            return self.token_label >= 0
        found = self.weight != 0
        found[self.token_offsets[:-1]] = False  # nothing stands before the first of a branch
        return found

    def all_ids(self, sample: int) -> np.ndarray:
        """The token ids of a sample, its branches one after the other: [T]."""
        first, last = self.branch_offsets[sample], self.branch_offsets[sample + 1]
        return self.ids[self.token_offsets[first] : self.token_offsets[last]]

    def place(self, sample: int) -> str:
        """Where the row of a sample stands, as in `file:17`."""
        name, line = self.files[self.file[sample]], self.line[sample]
        return name if line < 0 else f"{name}:{line}"


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
        self._sources: list[str] = []
        self._files_seen: dict[str, int] = {}
        self._keys, self._whole = bytearray(), bytearray()  # digests of the samples: of ids, and of all that is learned
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_dead(folder.parent)
            work = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
        except OSError as error:
            reason = f"rendered rows cannot be kept in {folder.parent}: {error.strerror}"
            raise DataError(f"{reason}. {ELSEWHERE}") from error
        self._stack = contextlib.ExitStack()  # unwound from its end: last arrays, files, description, folder
        self._work = self._stack.enter_context(atomic.folder(folder, work, replace=lambda found: not is_whole(found)))
        self._stack.push(self._describe)
        self._files: dict[str, IO[bytes]] = {
            name: self._stack.enter_context(open(self._work / name, "wb")) for name in ARRAYS
        }
        self._stack.push(self._conclude)
        self._digests = {name: hashlib.sha256() for name in CONTENT}

    def __enter__(self) -> "StoreWriter":
        return self

    def begin(self, source: str) -> None:
        """What is added from here on comes from a source of this name."""
        self._sources.append(source)

    def add(self, samples: Iterable[Rendered]) -> None:
        """Count some samples and write those that are kept. Raises DataError when there is no room for them."""
        kept = []
        for one in samples:
            self.ledger.add(one, self._sources[-1] if self._sources else "")
            self._row += one.part == 0
            if one.dropped is None:
                kept.append((self._row, one))
        with atomic.room(self.folder.parent, DataError, ELSEWHERE):
            for name, values in self._columns(kept).items():
                self._write(name, np.asarray(values, ARRAYS[name]))

    def _columns(self, kept: list[tuple[int, Rendered]]) -> dict[str, Any]:
        """The arrays of some samples, but those that are known when all have come."""
        branches = [tokens for _, one in kept for tokens in one.branches]
        places = [self._place(one.where) for _, one in kept]
        self._keys += b"".join(_key(one) for _, one in kept)
        self._whole += b"".join(whole_key(one) for _, one in kept)
        return {
            "ids": np.concatenate([tokens.ids for tokens in branches]) if branches else [],
            "weight": np.concatenate([tokens.weight for tokens in branches]) if branches else [],
            "branch_tokens": [len(tokens) for tokens in branches],
            "shared": [tokens.shared for tokens in branches],
            "sample_branches": [len(one.branches) for _, one in kept],
            "label": [np.nan if one.label is None else one.label for _, one in kept],
            TOKEN_LABEL: [number for tokens in branches if tokens.label is not None for number in tokens.label],
            "row": [row for row, _ in kept],
            "source": [max(0, len(self._sources) - 1)] * len(kept),
            "file": [file for file, _ in places],
            "line": [line for _, line in places],
            "trained": [sum(tokens.trained for tokens in one.branches) for _, one in kept],
        }

    def _place(self, where: str) -> tuple[int, int]:
        """A place as the number of its file, and the line; -1 where there is none."""
        name, _, line = where.rpartition(":")
        if not line.isdecimal():
            name, line = where, "-1"
        return self._files_seen.setdefault(name, len(self._files_seen)), int(line)

    def _write(self, name: str, values: np.ndarray) -> None:
        written = values.tobytes()
        self._files[name].write(written)
        if name in CONTENT:
            self._digests[name].update(written)

    def _conclude(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is known when all samples have come."""
        if kind is not None:
            return
        self._write("key", np.frombuffer(self._keys, ARRAYS["key"]))
        self._write("equals", first_equal(np.frombuffer(self._whole, "<u8").reshape(-1, 2)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        published_first = contextlib.suppress(FileExistsError)  # by another process that wrote the same store
        with atomic.room(self.folder.parent, DataError, ELSEWHERE), published_first:
            self._stack.__exit__(kind, error, trace)

    def _describe(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        sizes = {name: (self._work / name).stat().st_size for name in ARRAYS}
        content = [name for name in CONTENT if name != TOKEN_LABEL or sizes[name]]
        digest = hashlib.sha256(b"".join(self._digests[name].digest() for name in content)).hexdigest()
        meta = {
            "ledger": self.ledger.as_dict(),
            "notes": self.notes,
            "digest": digest,
            "bytes": sizes,
            "files": list(self._files_seen),
            "sources": self._sources or [""],
        }
        (self._work / META).write_text(json.dumps(meta), encoding="utf-8")


def first_equal(keys: np.ndarray) -> np.ndarray:
    """The number of the first row that is equal, for each row of [M, 2]: [M]."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable, so that the first of equals stands first
    ordered = keys[order]
    starts = np.ones(len(keys), bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    found = np.empty(len(keys), np.int64)
    found[order] = order[starts][np.cumsum(starts) - 1]
    return found


def _key(one: Rendered) -> bytes:
    """A digest of the token ids of a sample, branch by branch."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for tokens in one.branches:
        digest.update(len(tokens).to_bytes(8, "little"))
        digest.update(np.asarray(tokens.ids, ARRAYS["ids"]).tobytes())
    return digest.digest()


def whole_key(one: Rendered) -> bytes:
    """A digest of all that is learned of a sample: ids, weights (but the first, which asks nothing) and label."""
    digest = hashlib.blake2b(_key(one), digest_size=KEY_BYTES)
    for tokens in one.branches:
        digest.update(np.asarray(tokens.weight[1:], ARRAYS["weight"]).tobytes())
        if tokens.label is not None:
            digest.update(np.asarray(tokens.label, ARRAYS[TOKEN_LABEL]).tobytes())
    digest.update(repr(one.label).encode())
    return digest.digest()


def _remove_dead(parent: Path) -> None:
    """Remove what killed writers left."""
    for folder in parent.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another process may remove or publish it now
            written = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
            if time.time() - written > DEAD_SECONDS:
                shutil.rmtree(folder)


def _by_sample(label: np.ndarray, samples: int) -> np.ndarray:
    """The labels of so many samples: [M], or [M, classes]."""
    return label if len(label) == samples else label.reshape(samples, -1)


def _mapped(path: Path, kind: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, kind)
    return np.memmap(path, kind, "r").view(np.ndarray)  # a slice of a plain array is cheaper
