"""Files that DeepSpeed keeps an optimizer's state in (`parallel.offload=nvme`): their folder, and what they need.

DeepSpeed 0.19 writes past the system's cache by libaio, out of memory that is locked. It does not look at what became
of a write, and a process ends by an abort where memory cannot be locked or a file is too short. So what can be known
before is asked before.
"""

import contextlib
import ctypes
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tunesmith import recipe_zero
from tunesmith.component import name_of
from tunesmith.engine import ranks
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe

NAME = ".tunesmith-*.swap"  # of the folder of a process
LOCK = "lock"  # a file in it that is locked as long as the process lives
LEAST = 1024  # bytes that DeepSpeed writes at once: its alignment
WIDE = 4  # bytes of a number


@contextlib.contextmanager
def folder(recipe: Recipe, run: Path | None) -> Iterator[Path | None]:
    """A folder for the files of this process until the end of the block; None where the recipe wants none.

    It lies where the recipe says, or beside the folder of the run. What killed processes left there is removed.

    Raises:
        RecipeError: DeepSpeed cannot write there as it does.
    """
    if not recipe_zero.in_files(recipe.parallel):
        yield None
        return
    reason = ranks.once(_unbuilt)
    if reason is not None:
        raise RecipeError(
            f"parallel.offload={recipe_zero.NVME}: DeepSpeed cannot build what writes files: {reason}. It needs libaio "
            "(apt-get install libaio-dev) and a C++ compiler: install them, or say offload=cpu"
        )
    said = recipe_zero.nvme_path(recipe.parallel)
    base = Path(said).expanduser() if said else (run or Path(recipe.train.output_dir or "runs/any")).absolute().parent
    with contextlib.ExitStack() as until_the_end:
        try:
            base.mkdir(parents=True, exist_ok=True)
            own = Path(tempfile.mkdtemp(prefix=NAME.split("*")[0], suffix=NAME.split("*")[1], dir=base))
            until_the_end.callback(shutil.rmtree, own, ignore_errors=True)
            until_the_end.callback(os.close, _locked(own))  # before that: NFS keeps the name of an open file
        except OSError as error:
            raise RecipeError(
                f"parallel.nvme_path: {base} cannot be written, or locked ({error.strerror}): say another"
            ) from error
        _remove_others(base, own)
        _refuse_indirect(base, own)
        yield own


def _unbuilt() -> str | None:
    """Why DeepSpeed's part that writes files cannot be had; the first time it is compiled here."""
    import torch
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.cuda.is_available() and CUDA_HOME is None:
        return "it is built against the CUDA toolkit (nvcc), which is not found: set CUDA_HOME"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            AsyncIOBuilder().load(verbose=False)
    except (RuntimeError, OSError, ImportError) as error:
        return (str(error) or type(error).__name__).splitlines()[0].strip().rstrip(".")
    return None


def _locked(own: Path) -> int:
    """A locked file in a folder, which has its name once it is locked."""
    import fcntl

    work = own / f".{LOCK}"
    lock = os.open(work, os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    work.rename(own / LOCK)
    return lock


def _remove_others(base: Path, own: Path) -> None:
    """Remove what processes left that live no more: their locks are gone with them."""
    import fcntl

    for other in base.glob(NAME):
        if other == own:
            continue
        with contextlib.suppress(OSError), (other / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other, ignore_errors=True)


def _refuse_indirect(base: Path, own: Path) -> None:
    """Raise RecipeError where a file system does not take what DeepSpeed writes past the system's cache."""
    try:
        handle = os.open(own / "tried", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page) as view, view[:LEAST] as zeros:
                os.pwrite(handle, zeros, 0)
        finally:
            os.close(handle)
    except OSError as error:
        raise RecipeError(
            f"parallel.nvme_path: {base} does not take {LEAST:,} bytes past the system's cache, as DeepSpeed writes "
            f"them ({error.strerror}): say a folder on a disk of this machine"
        ) from error
    (own / "tried").unlink()


def refuse_small(recipe: Recipe, swap: Path, numbers: int, largest: int) -> None:
    """Raise RecipeError where the disk lacks room, or this user may not lock as much memory as the buffers take.

    `numbers` of weights are this process's, `largest` of them in one parameter. All processes call it.
    """
    zero = recipe_zero.options(recipe, ranks.number(), swap=swap)["zero_optimization"]
    each = 1 + recipe_zero.STATES[name_of(recipe.optimizer)]
    wanted = 2 * numbers * WIDE * each * ranks.on_this_machine()  # twice: a checkpoint is written beside it
    free = shutil.disk_usage(swap).free
    reason = None
    if wanted > free:
        reason = (
            f"parallel.nvme_path: {swap.parent} has {free / 1e9:,.3g} GB free, and the optimizer's state of the "
            f"processes of a machine, with a checkpoint of it, takes {wanted / 1e9:,.3g} GB: make room, or say another "
            "folder"
        )
    buffers = zero["offload_optimizer"]["buffer_count"] * min(numbers, zero["sub_group_size"] + largest) * WIDE
    limit = _lockable(buffers)
    if limit is not None:
        reason = reason or (
            f"parallel.offload={recipe_zero.NVME}: its buffers take {buffers / 1e6:,.1f} MB of locked memory, and a "
            f"process may lock {limit / 1e6:,.1f} MB here: raise that (ulimit -l, LimitMEMLOCK of a service), or say a "
            "smaller zero_optimization.sub_group_size in parallel.deepspeed_config"
        )
    for one in ranks.everyones(reason):
        if one is not None:
            raise RecipeError(one)


def _lockable(wanted: int) -> int | None:
    """The bytes that this process may lock in memory, where that is less than what is wanted."""
    import resource

    limit, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
        limit = most
    if limit == resource.RLIM_INFINITY or wanted <= limit or _locks(wanted):
        return None
    return limit


def _locks(wanted: int) -> bool:
    """Whether so many bytes can be locked: a privileged process may lock more than its limit."""
    system = ctypes.CDLL(None, use_errno=True)
    try:
        memory = mmap.mmap(-1, wanted)
    except (OSError, ValueError, OverflowError):
        return False
    with memory:
        view = (ctypes.c_char * len(memory)).from_buffer(memory)
        where, size = ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(len(memory))
        may = system.mlock(where, size) == 0
        if may:
            system.munlock(where, size)
        del view
    return may
