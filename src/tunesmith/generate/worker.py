"""A thread that answers: it owns a batch, takes requests from any thread, and hands every reader its pieces.

A batch belongs to one thread, and so does its model: what else wants the model (`Worker.call`) is done between steps.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from tunesmith.errors import RunError, TunesmithError
from tunesmith.generate.batch import Batch, Piece, Request, Stream

log = logging.getLogger(__name__)

Result = TypeVar("Result")

FAILURES = 10  # steps that fail one after the other, behind which the model is taken for broken


class Refused(RunError):
    """The worker takes no request now: its queue is full, or it stops."""


class Failed(RunError):
    """An answer has no end, because what makes it failed."""


class Reader(Iterator[Piece]):
    """One answer, read in another thread than it is made in: iterating waits for its pieces.

    `notify` is called in the worker's thread whenever there is something new, for readers that wait in another way
    (an event loop: `loop.call_soon_threadsafe`); they take what there is by `ready`.
    """

    def __init__(self, request: Request, notify: Callable[[], None], on_close: Callable[[], None]) -> None:
        self.request = request
        self.submitted = time.monotonic()
        self.begun: float | None = None  # when it left the queue
        self._notify, self._on_close = notify, on_close
        self._changed = threading.Condition()
        self._pieces: deque[Piece] = deque()
        self._error: Exception | None = None
        self._whole = self._closed = False

    def ready(self) -> list[Piece]:
        """The pieces that have come. Raises Failed, once they are taken, where there can be no more."""
        with self._changed:
            found = list(self._pieces)
            self._pieces.clear()
            if not found and self._error is not None:
                raise Failed(str(self._error)) from self._error
            return found

    def __next__(self) -> Piece:
        with self._changed:
            while not (self._pieces or self._whole):
                self._changed.wait()
            if self._pieces:
                return self._pieces.popleft()
            if self._error is not None:
                raise Failed(str(self._error)) from self._error
            raise StopIteration

    @property
    def closed(self) -> bool:
        """Whether nobody reads on."""
        return self._closed

    def close(self) -> None:
        """Read no more: its place is given up with the next step."""
        with self._changed:
            self._closed = self._whole = True
            self._pieces.clear()
            self._changed.notify_all()
        self._on_close()

    def _put(self, pieces: Sequence[Piece], whole: bool = False, error: Exception | None = None) -> None:
        with self._changed:
            if self._closed:
                return
            self._pieces += pieces
            self._whole, self._error = whole or error is not None, error
            self._changed.notify_all()
        self._notify()


class Worker:
    """The thread of a batch. As a context manager it runs for the block.

    `max_waiting` is how many answers may wait beside those that the decoder has room for.
    """

    def __init__(self, batch: Batch, max_waiting: int = 64) -> None:
        self.batch, self.max_waiting = batch, max_waiting
        self.failures = 0  # steps that failed, one after the other
        self._wake = threading.Condition()
        self._inbox: deque[Reader] = deque()
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._open: dict[Reader, Stream] = {}
        self._stopping = False
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="tunesmith-worker", daemon=True)

    def __enter__(self) -> "Worker":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop(0)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def num_running(self) -> int:
        """Answers that are being made."""
        return len(self.batch.running)

    @property
    def num_waiting(self) -> int:
        """Answers that wait for a place."""
        return max(0, len(self._inbox) + len(self._open) - self.num_running)

    @property
    def most(self) -> int:
        """Answers that it takes at a time: those that run and those that wait."""
        return self.batch.decoder.most + self.max_waiting

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and its model does what it is asked."""
        return self._thread.is_alive() and self.failures < FAILURES

    def submit(self, *requests: Request, notify: Callable[[], None] = lambda: None) -> list[Reader]:
        """The answers to some requests, all of them or none.

        Raises:
            Refused: there is no room in the queue, or the worker stops.
        """
        readers = [Reader(request, notify, self._look) for request in requests]
        with self._wake:
            taken = len(self._inbox) + len(self._open)
            self._refuse(taken + len(readers) > self.most, f"{taken} answers")
            self._inbox += readers
            self._wake.notify()
        return readers

    def call(self, job: Callable[[], Result]) -> "Future[Result]":
        """Do something with the model between two steps. Raises Refused, as `submit`."""
        future: Future[Result] = Future()
        with self._wake:
            self._refuse(len(self._jobs) > self.max_waiting, f"{len(self._jobs)} jobs")
            self._jobs.append((future, job))
            self._wake.notify()
        return future

    def stop(self, grace_seconds: float | None = None) -> None:
        """Take no more; finish what is there, for so long at most (None: to its end), and end the thread."""
        with self._wake:
            self._stopping = True
            if grace_seconds is not None:
                self._deadline = time.monotonic() + grace_seconds
            self._wake.notify()
        if self._thread.ident is not None:  # it was started
            self._thread.join()

    def _refuse(self, full: bool, taken: str) -> None:
        if self._stopping:
            raise Refused(f"the server stops: it finishes {taken}, and takes no new ones")
        if full:
            raise Refused(f"the queue is full: {taken} are in it. Try again later")

    def _look(self) -> None:
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        try:
            while self._take():
                self._do_jobs()
                if self.batch.waiting or self.batch.running:
                    self._step()
        finally:
            for reader in (*self._open, *self._inbox):
                reader._put((), error=Refused("the server stopped before the answer's end"))
            for future, _ in self._jobs:
                future.cancel()

    def _take(self) -> bool:
        """Wait for something to do, and take it. False: there is nothing, and nothing will be."""
        with self._wake:
            while not (self._stopping or self._inbox or self._jobs or self._open or self.batch.running):
                self._wake.wait()
            late = self._deadline is not None and time.monotonic() >= self._deadline
            if self._stopping and (late or not (self._inbox or self._jobs or self._open)):
                return False
            new = list(self._inbox)
            for reader in new:
                try:
                    self._open[reader] = self.batch.add(reader.request)
                except TunesmithError as error:
                    reader._put((), error=error)
            self._inbox.clear()
        for reader in [reader for reader in self._open if reader.closed]:
            self._open.pop(reader).close()
        return True

    def _do_jobs(self) -> None:
        """Do what was asked by the time that this began, so that answers go on."""
        for _ in range(len(self._jobs)):
            with self._wake:
                future, job = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except Exception as error:  # noqa: BLE001  # who asked is told
                future.set_exception(error)

    def _step(self) -> None:
        now = time.monotonic()
        try:
            self.batch.step()
        except Exception as error:  # noqa: BLE001  # whoever waits for its answers is told, and others go on
            self._fail(error)
        for reader, stream in list(self._open.items()):
            if reader.begun is None and (stream in self.batch.running or stream.finish is not None):
                reader.begun = now
            pieces = stream.ready()
            if pieces:
                self.failures = 0
            if stream.finish is not None:
                del self._open[reader]
            if pieces or stream.finish is not None:
                reader._put(pieces, whole=stream.finish is not None, error=stream.error)

    def _fail(self, error: Exception) -> None:
        """End the answers whose step failed: those that have a place, or else the one that was to get it."""
        self.failures += 1
        log.warning("answers failed: %s: %s", type(error).__name__, error, exc_info=error)
        waiting = set(self.batch.waiting)
        lost = [reader for reader, stream in self._open.items() if stream not in waiting]
        if not lost and self.batch.waiting:
            lost = [reader for reader, stream in self._open.items() if stream is self.batch.waiting[0]]
        for reader in lost:
            stream = self._open.pop(reader)
            reader._put(stream.ready(), error=error)
            stream.close()
        _forget()


def _forget() -> None:
    """Give back the memory that a failed step held on a device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
