"""Answers in an event loop: their pieces as they come, and an end when nobody is there any more."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tunesmith.generate.batch import Piece, Request
from tunesmith.generate.worker import Worker
from tunesmith.serve.problem import GONE, Problem

Found = TypeVar("Found")

FAILED = "error"  # how a stream ended in the log, where it tells of an error instead of its answers' ends


@dataclass
class Account:
    """What is logged and counted of a request."""

    started: float = field(default_factory=time.monotonic)
    body_bytes: int = 0
    model: str | None = None
    stream: bool = False
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finish: list[str] = field(default_factory=list)
    queued_seconds: float | None = None
    first_token_seconds: float | None = None
    last_token_seconds: float | None = None
    problem: str | None = None


def account_of(request: HttpRequest) -> Account:
    """The account of a request."""
    found = request.scope["account"]
    assert isinstance(found, Account)
    return found


class Answers(AsyncIterator[tuple[int, Piece]]):
    """The answers to some requests: iterating gives their pieces as they come, each with the number of its answer.

    Raises, while it is read:
        Failed: what makes them failed.
    """

    def __init__(self, worker: Worker, requests: Sequence[Request], account: Account) -> None:
        loop, self._came = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and so has whoever read
                loop.call_soon_threadsafe(self._came.set)

        self.readers = worker.submit(*requests, notify=notify)
        self._open = dict(enumerate(self.readers))
        self._account = account
        self._ready = deque[tuple[int, Piece]]()

    async def __anext__(self) -> tuple[int, Piece]:
        while not self._ready:
            if not self._open:
                raise StopAsyncIteration
            await self._came.wait()
            self._came.clear()
            for number, reader in list(self._open.items()):
                while pieces := reader.ready():  # until there is none: it raises then, where none can come
                    for piece in pieces:
                        self._note(reader.begun, piece)
                        self._ready.append((number, piece))
                    if pieces[-1].finish is not None:
                        del self._open[number]
        return self._ready.popleft()

    def close(self) -> None:
        """Make no more of them."""
        for reader in self.readers:
            reader.close()

    def _note(self, begun: float | None, piece: Piece) -> None:
        now, account = time.monotonic() - self._account.started, self._account
        account.generated_tokens += len(piece.tokens)
        account.last_token_seconds = now
        if account.first_token_seconds is None:
            account.first_token_seconds = now
            account.queued_seconds = None if begun is None else begun - self.readers[0].submitted


class Events(StreamingResponse):
    """Server-sent events, and what is to be done when they are sent, or nobody takes them."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def while_there(request: HttpRequest, work: Awaitable[Found]) -> Found:
    """What some work gives, while its reader is there. Raises Problem when it is not any more."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Problem("the client has gone before its answer", GONE)
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
