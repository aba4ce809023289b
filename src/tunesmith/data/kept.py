"""Values of a frozen model in a file that runs fill little by little, and that later runs find.

A file holds the values, NaN where none was made yet, and behind them a digest of each block of them. The values of a
block that has another digest are made again: a machine or a disk failed, or a program was killed between two times that
what it made went to the disk.

Letters: N values, B blocks.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith import atomic
from tunesmith.errors import DataError

BLOCK = 1 << 16  # values
DIGEST_BYTES = 16
ROOM = "Say data.cache_dir=FOLDER"


@dataclass(frozen=True, eq=False)
class Kept:
    """Values [N] that a run reads and fills, and the digests [B, DIGEST_BYTES] behind them in their file.

    Where there is no file, the values end with the run.
    """

    values: np.ndarray
    digests: np.ndarray | None = None
    file: np.memmap | None = None

    def flush(self) -> None:
        """Put what was made on the disk, with its digests."""
        if self.file is not None and self.digests is not None:
            self.digests[:] = [_digest(block) for block in _blocks(self.values)]
            self.file.flush()


def open_file(path: Path, none: np.ndarray, size: int, say: Callable[[str], None]) -> Kept:
    """The values of a file, mapped to be written; a new one holds `none` ([], of their dtype) `size` times.

    Raises:
        DataError: there is no room for it.
    """
    digests_bytes = -(-size // BLOCK) * DIGEST_BYTES
    if not path.is_file() or path.stat().st_size != size * none.itemsize + digests_bytes:
        _write(path, (np.full(min(BLOCK, size - first), none) for first in range(0, size, BLOCK)))
    file = np.memmap(path, np.uint8, "r+")
    values, digests = file[:-digests_bytes].view(none.dtype), file[-digests_bytes:].reshape(-1, DIGEST_BYTES)
    kept = Kept(values.view(np.ndarray), digests, file)
    wrong = [bool((_digest(block) != own).any()) for block, own in zip(_blocks(kept.values), digests, strict=True)]
    if not any(wrong):
        return kept
    blocks = [np.full(len(one), none) if bad else one for one, bad in zip(_blocks(kept.values), wrong, strict=True)]
    lost = sum(len(one) for one, bad in zip(blocks, wrong, strict=True) if bad)
    say(f"{path} is not what was written: {lost:,} of its {size:,} values are made again")
    _write(path, blocks)
    return open_file(path, none, size, say)


def _write(path: Path, blocks: Iterable[np.ndarray]) -> None:
    """A new file: another program may read or fill the one that is there."""
    with atomic.room(path.parent, DataError, ROOM):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.written(path) as file:
            digests = []
            for block in blocks:
                file.write(block.tobytes())
                digests.append(_digest(block))
            file.write(np.stack(digests).tobytes())


def _blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(values), BLOCK):
        yield values[first : first + BLOCK]


def _digest(block: np.ndarray) -> np.ndarray:
    return np.frombuffer(hashlib.blake2b(block.tobytes(), digest_size=DIGEST_BYTES).digest(), np.uint8)
