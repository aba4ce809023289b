"""Several processes that train one model together, as torchrun and its like start them. Rank 0 is the first of them.

Where there is one process, every function here returns at once and does nothing.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from tunesmith.errors import JOB, RESTART_COUNT

Found = TypeVar("Found")

PATIENCE = timedelta(days=1)  # rendering and writing take rank 0 longer than the minutes that NCCL waits
JOBS = (JOB, "TORCHELASTIC_RUN_ID")  # torchrun says none where nobody has named it
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")  # torchrun's name, and that of DeepSpeed's launch.py
RESTARTS = (RESTART_COUNT, "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")  # how often a run was begun again


def number() -> int:
    """How many there are, which their starter tells each of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own() -> int:
    """Which of them this process is, from 0."""
    return int(os.environ.get("RANK", "0")) if number() > 1 else 0


def on_this_machine() -> int:
    """How many of them share this machine."""
    found = [os.environ[name] for name in LOCAL_SIZES if name in os.environ]
    return int(found[0]) if found and number() > 1 else 1


def restarted() -> bool:
    """Whether their starter started them again after a crash (`launcher.max_restarts`), or Slurm queued them again.

    It tells those of the machine where the crash was, and they tell the others.
    """
    return any(everyones(any(int(os.environ.get(name, "0")) > 0 for name in RESTARTS)))


def job() -> str | None:
    """What their starter calls them, the same name when it begins them again, or more of them; None: it has none."""
    return next((said for name in JOBS if (said := os.environ.get(name, "none")) != "none"), None)


def meet(device: str) -> None:
    """Join the others, and take the device of this process: from here on each waits where all must be."""
    if number() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")
        _patient()  # all make it at once
        atexit.register(_part)


def new_group() -> Any:
    """A group of all, by way of the host's memory, in which each waits long. All make it at once."""
    import torch

    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)


_patient = cache(new_group)  # for what one does while the others wait, and for objects


def _part() -> None:
    """Leave the others: threads of theirs that still run when a process ends can end it with an abort."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wait() -> None:
    """Go on when all are here."""
    if number() > 1:
        import torch

        torch.distributed.barrier(group=_patient())


@contextmanager
def first() -> Iterator[None]:
    """A block that rank 0 goes through first; the others then find in a cache what it made."""
    if own() > 0:
        wait()
    yield
    if own() == 0:
        wait()


def once(work: Callable[[], Found]) -> Found:
    """What rank 0 alone does, and gives to all."""
    if number() == 1:
        return work()
    import torch

    found: list[Any] = [work() if own() == 0 else None]
    torch.distributed.broadcast_object_list(found, group=_patient())
    return found[0]


def everyones(value: Found) -> list[Found]:
    """What each of them has, in their order."""
    if number() == 1:
        return [value]
    import torch

    found: list[Any] = [None] * number()
    torch.distributed.all_gather_object(found, value, group=_patient())
    return found


def largest(value: int) -> int:
    """The largest number that one of them has: one number goes round, and no object is packed for it."""
    if number() == 1:
        return value
    import torch
    from accelerate import PartialState

    found = torch.tensor(value, device=PartialState().device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found)


def counted(counts: Mapping[str, Any], each: int = 1) -> dict[str, Any]:
    """Tensors of counts by name, added over all of them; a rank may lack a name that another one has.

    Of every `each`, one after the other, that have the same counts, the first one's are added.
    """
    total: dict[str, Any] = {}
    for part in everyones(dict(counts))[::each]:
        for name, one in part.items():
            total[name] = total.get(name, 0) + one
    return total


def added(sums: Mapping[str, Sequence[Any]], each: int = 1) -> dict[str, tuple[float, float]]:
    """Sums and counts by name, over all of them, or the first of every `each`; a rank may lack a name."""
    total: dict[str, tuple[float, float]] = {}
    for part in everyones({name: (float(pair[0]), float(pair[1])) for name, pair in sums.items()})[::each]:
        for name, pair in part.items():
            before = total.get(name, (0.0, 0.0))
            total[name] = (before[0] + pair[0], before[1] + pair[1])
    return total
