"""Large matrix products on a CPU, into memory that a step has used before.

The system gives a process empty pages one after the other, and takes them back as soon as they are freed: on a
processor that costs up to a tenth of a step, most with long rows. So a storage is kept and used again when no tensor
lies in it any more. A CUDA device needs none of this: torch keeps its memory by itself.

Letters: T tokens, I and O features in and out.
"""

import threading
from dataclasses import dataclass, field

import torch

from tunesmith.engine.compat import tensors_in, watched

LEAST = 1 << 20  # elements of a product from which its memory is kept: 2 MB in bfloat16
IDLE = 4096  # products after which a storage that nobody has used is given back: some steps of a large model


@dataclass(eq=False)
class Pool:
    """Storages by their size in bytes, and when each was used last, counted in products: longest ago first."""

    kept: dict[int, list[torch.UntypedStorage]] = field(default_factory=dict)
    used: dict[torch.UntypedStorage, int] = field(default_factory=dict)
    turn: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """A tensor [rows, columns] of whatever was there before. Sizes are rounded up, by an eighth at most."""
        size = rows * columns * dtype.itemsize
        step = 1 << (size.bit_length() - 4)
        size = -(-size // step) * step  # what is not written to takes no memory
        with self.lock:
            self.turn += 1
            if self.turn % IDLE == 0:
                self.forget(IDLE)
            storage = next((one for one in self.kept.get(size, ()) if not tensors_in(one)), None)
            if storage is None:
                self.forget(most=size)  # so that rows of many lengths hold little more together than the longest
                storage = torch.empty(size, dtype=torch.uint8).untyped_storage()
                self.kept.setdefault(size, []).append(storage)
            self.used.pop(storage, None)
            self.used[storage] = self.turn
            return torch.empty(0, dtype=dtype).set_(storage, 0, (rows, columns), (columns, 1))  # a view of no tensor

    def forget(self, idle: int = 0, most: int | None = None) -> None:
        """Give back storages in which no tensor lies: those not used for a number of products, up to some bytes."""
        with self.lock:
            for storage, turn in list(self.used.items()):
                if self.turn - turn < idle or (most is not None and most <= 0):
                    return
                if not tensors_in(storage):
                    size = storage.nbytes()
                    most = None if most is None else most - size
                    del self.used[storage]
                    self.kept[size].remove(storage)
                    if not self.kept[size]:
                        del self.kept[size]


POOL = Pool()


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """X [T, I] @ weight [I, O] + bias [O]: [T, O], without a gradient.

    A dispatch mode may answer with what it has kept and leave `out` as it is: under one, memory is new.
    """
    out = None
    if len(x) * weight.shape[1] >= LEAST and x.device.type == "cpu" and not watched():
        out = POOL.take(len(x), weight.shape[1], x.dtype)
    return torch.mm(x, weight, out=out) if bias is None else torch.addmm(bias, x, weight, out=out)
