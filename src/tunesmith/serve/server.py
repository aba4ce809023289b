"""The server as a process: it loads, listens, and ends when it is told to, with its answers finished."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from tunesmith.errors import RunError
from tunesmith.serve import guard
from tunesmith.serve.app import build
from tunesmith.serve.options import LOOPBACK, Serving
from tunesmith.serve.served import Served

FLUSH_SECONDS = 5.0  # for what answers that are ended say, after the grace is over
TICK_SECONDS = 0.1
OFTEN = 10  # ticks from one look at the connections to the next


class Server(uvicorn.Server):
    """uvicorn's, which ends what does not end by itself: the answers of a server that stops, headers that do not come.

    A signal ends it like any other end: uvicorn itself would raise it again.
    """

    def __init__(self, served: Served, write: Callable[[str], None], **options: Any) -> None:
        config = uvicorn.Config(
            build(served, write),
            http="h11",  # whose connections are looked after here; it is always there
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            **options,
        )
        super().__init__(config)
        self._served = served
        self._silent: dict[Any, tuple[Any, float]] = {}  # connections without a request: behind which one, since when

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End when a signal comes; two of them end it at once."""
        self.force_exit, self.should_exit = self.should_exit, True

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections."""
        if counter % OFTEN == 0:
            self._drop_silent(time.monotonic())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests; finish what runs, in the time of grace; and tell the others that they are not."""
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        end = time.monotonic() + self._served.options.grace_seconds
        await self._until_none(lambda: self.force_exit or time.monotonic() >= end)
        if self.server_state.connections or self.server_state.tasks:
            ending, end = asyncio.ensure_future(asyncio.to_thread(self._served.end)), time.monotonic() + FLUSH_SECONDS
            await self._until_none(lambda: time.monotonic() >= end)
            for connection in list(self.server_state.connections):  # whoever does not read, or still asks
                connection.transport.abort()
            await self._until_none(lambda: time.monotonic() >= end + FLUSH_SECONDS)
            await ending

    async def _until_none(self, late: Callable[[], bool]) -> None:
        while (self.server_state.connections or self.server_state.tasks) and not late():
            await asyncio.sleep(TICK_SECONDS)

    def _drop_silent(self, now: float) -> None:
        """Close connections that have been without a request for longer than one may take to come."""
        idle: list[Any] = [one for one in self.server_state.connections if _is_idle(one)]
        before = self._silent
        self._silent = {one: before.get(one, (one.cycle, now)) for one in idle}
        for connection, (cycle, since) in list(self._silent.items()):
            if connection.cycle is not cycle:
                self._silent[connection] = connection.cycle, now
            elif now - since > self._served.options.receive_seconds:
                connection.transport.close()


def _is_idle(connection: Any) -> bool:
    """Whether a connection has no request, or not the whole of its headers."""
    return connection.cycle is None or connection.cycle.response_complete


def run(path: str, options: Serving, say: Callable[[str], None], write: Callable[[str], None]) -> None:
    """Serve what `path` names until SIGTERM or Ctrl-C. `say` is for people, `write` gets a line of each request.

    Raises:
        RecipeError, RunError, ModelError: what is named cannot be loaded, or the address is taken.
    """
    has_key = bool(guard.keys(options))
    with _listening(options) as listening, contextlib.closing(Served.open(path, options)) as served:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        say(f"{path} is served as {', '.join(served.names)} at http://{shown}:{port}/v1 (Ctrl-C ends it)")
        if not has_key and options.host not in LOOPBACK:
            say(f"warning: whoever reaches {options.host} can use it: give it a key (--api-key-file FILE)")
        served.start()
        asyncio.run(Server(served, write).serve([listening]))


def _listening(options: Serving) -> socket.socket:
    """A socket at the address, before anything is loaded. Raises RunError when it is taken."""
    found = None
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((options.host, options.port))
    except OSError as error:
        if found is not None:
            found.close()
        raise RunError(f"{options.host}:{options.port} cannot be listened at: {error.strerror or error}") from error
    return found
