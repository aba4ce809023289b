"""Rendering in processes of its own. What comes out, and in which order, does not depend on how many there are."""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from tunesmith.component import Component, spell
from tunesmith.data.render import Renderer, Row
from tunesmith.data.rendered import Rendered
from tunesmith.errors import DataError
from tunesmith.seams import Format

_worker: dict[str, Renderer] = {}  # filled once in each rendering process, empty in the parent


class Workers:
    """Renders chunks of rows in some processes, or in the caller's when there is to be one. Close it after use."""

    def __init__(self, renderer: Renderer, processes: int) -> None:
        self.renderer, self.processes = renderer, processes
        self.ahead = 2 * processes if processes > 1 else 0  # chunks to submit before the first is asked for
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, rows: list[Row], format_: Format, first: bool = False) -> Callable[[], list[Rendered]]:
        """Begin to render some rows, those that a source begins with or later ones.

        The function that is given back waits for their samples.
        """
        if self.processes == 1:
            return lambda: self.renderer.render(rows, format_, first)
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            start = (self.renderer.data.model_dump(mode="json"), spell(self.renderer.objective))
            self._pool = ProcessPoolExecutor(self.processes, context, _start_worker, (*start, self.renderer.tokenizer))
        where = rows[0][0]
        with _told(where):
            future = self._pool.submit(_render_in_worker, rows, spell(format_), first)
        return lambda: _result(future, where)

    def close(self) -> None:
        """End the processes; what they have not begun is not rendered."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _result(future: Future[list[Rendered]], where: str) -> list[Rendered]:
    with _told(where):
        return future.result()


@contextmanager
def _told(where: str) -> Iterator[None]:
    """What goes wrong between processes, as a DataError that names the first of the rows."""
    try:
        yield
    except RecursionError:
        said = f"{where} or a row after it has lists or objects too deep in one another for another process"
        raise DataError(f"{said}: say data.num_processes=1") from None
    except BrokenProcessPool:
        raise DataError(
            f"a process that renders {where} and what follows was ended from outside, as a system without memory does: "
            "say fewer data.num_processes, or make room"
        ) from None


def _start_worker(data: dict[str, Any], objective: dict[str, Any], tokenizer: Any) -> None:
    """Build this process's renderer. Components travel as options: a user's file is no importable module."""
    from tunesmith.component import pick
    from tunesmith.recipe_data import Data
    from tunesmith.seams import Objective

    for kind in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the parent says when it is over
        signal.signal(kind, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    built = pick(Objective, objective)
    assert isinstance(built, Objective)
    _worker["renderer"] = Renderer(Data.model_validate(data), built, tokenizer)


def _end_with_parent() -> None:
    """A parent that is killed tells nobody, and its processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    signal.raise_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGABRT)


def _render_in_worker(rows: list[Row], format_: dict[str, Any], first: bool) -> list[Rendered]:
    from tunesmith.component import pick

    built: Component = pick(Format, format_)
    assert isinstance(built, Format)
    return _worker["renderer"].render(rows, built, first)
