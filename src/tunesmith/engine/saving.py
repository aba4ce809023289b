"""Checkpoints of weights that lie in parts: copied to the host's memory at once, and written while training goes on.

One save at a time: the next one, and the end of training, wait for it. Its folder takes its name when every process
has written its parts, so that a process that dies in between leaves the checkpoint before.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import torch

from tunesmith.engine import checkpoint, ranks

Writer = Callable[[Path, Any], None]  # writes parts into a folder, by messages of a group of all processes


class Saving:
    """The saves of a run, of which one may be going on. A block of it ends when that one has."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self._group: Any = None  # of its own: messages of a save must not meet those of a step

    def begin(
        self,
        final: Path,
        stage: Callable[[], Writer],
        beside: Callable[[Path], None],
        then: Callable[[], None],
    ) -> None:
        """Save what lies in parts, as `stage` copies it, as the checkpoint `final`; every process calls it.

        The first one also writes what stands `beside` it, now, and does what comes `then`, when it is there.
        """
        self.wait()
        self._group = self._group or ranks.new_group()
        write = stage()
        stack = ExitStack()
        try:
            folder = ranks.once(lambda: stack.enter_context(checkpoint.atomic_folder(final)))
            if ranks.own() == 0:
                beside(folder)
        except BaseException as error:
            stack.__exit__(type(error), error, error.__traceback__)
            raise
        self._thread = Thread(target=self._write, args=(folder, write, stack, then), name="tunesmith-save", daemon=True)
        self._thread.start()

    def _write(self, folder: Path, write: Writer, stack: ExitStack, then: Callable[[], None]) -> None:
        try:
            with stack:  # its end gives the folder its name
                write(folder, self._group)
                torch.distributed.barrier(self._group)
            if ranks.own() == 0:
                then()
            torch.distributed.barrier(self._group)
        except BaseException as error:  # noqa: BLE001  # the training thread raises it
            self._error = error

    def wait(self) -> None:
        """Go on when the save that is going on is over. Raises what it ended with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> "Saving":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception) and self._thread is not None:  # what ended training is told, and no other
            self._thread.join()
