"""Large matrix products on a CPU, into memory that a step has used before.

The system gives a process empty pages one after the other, and takes them back as soon as they are freed: on a
processor that costs up to a tenth of a step, most with long rows. So a storage is kept and used again when no tensor
lies in it any more. A CUDA device needs none of this: torch keeps its memory by itself.

Letters: T tokens, I and O features in and out.
"""

import threading
from dataclasses import dataclass, field

import torch

from tunesmith.engine.compat import tensors_in

LEAST = 1 << 20  # elements of a product from which its memory is kept: 2 MB in bfloat16
IDLE = 4096  # products after which a storage that nobody has used is given back: some steps of a large model


@dataclass(eq=False)
class Pool:
    """Storages by their size in bytes, and when each was used last, counted in products."""

    kept: dict[int, list[torch.UntypedStorage]] = field(default_factory=dict)
    used: dict[torch.UntypedStorage, int] = field(default_factory=dict)
    turn: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """A tensor [rows, columns] of whatever was there before. Sizes are rounded up, by an eighth at most."""
        size = rows * columns * dtype.itemsize
        step = 1 << (size.bit_length() - 4)
        size = -(-size // step) * step  # what is not written to takes no memory
        with self.lock:
            self.turn += 1
            alike = self.kept.setdefault(size, [])
            storage = next((one for one in alike if not tensors_in(one)), None)
            if storage is None:
                self.forget(IDLE)
                storage = torch.empty(size, dtype=torch.uint8).untyped_storage()
                self.kept.setdefault(size, []).append(storage)
            self.used[storage] = self.turn
            return torch.empty(0, dtype=dtype).set_(storage, 0, (rows, columns), (columns, 1))  # a view of no tensor

    def forget(self, idle: int = 0) -> None:
        """Give back every storage in which no tensor lies and that was not used for a number of products."""
        for size, alike in list(self.kept.items()):
            for one in list(alike):
                if self.turn - self.used[one] >= idle and not tensors_in(one):
                    alike.remove(one)
                    del self.used[one]
            if not alike:
                del self.kept[size]


POOL = Pool()


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """X [T, I] @ weight [I, O] + bias [O]: [T, O], without a gradient."""
    out = None
    if x.device.type == "cpu" and len(x) * weight.shape[1] >= LEAST:
        out = POOL.take(len(x), weight.shape[1], x.dtype)
    return torch.mm(x, weight, out=out) if bias is None else torch.addmm(bias, x, weight, out=out)
