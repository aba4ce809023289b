"""The server as a process: it loads, listens, and ends when it is told to, with its answers finished."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from tunesmith.errors import RunError
from tunesmith.serve import guard
from tunesmith.serve.app import build
from tunesmith.serve.options import LOOPBACK, Serving
from tunesmith.serve.served import Served

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn's, which a signal ends like any other end: uvicorn itself would raise the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End when a signal comes; two of them end it at once."""
        before = {one: signal.signal(one, self.handle_exit) for one in SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def run(path: str, options: Serving, say: Callable[[str], None], write: Callable[[str], None]) -> None:
    """Serve what `path` names until SIGTERM or Ctrl-C. `say` is for people, `write` gets a line of each request.

    Raises:
        RecipeError, RunError, ModelError: what is named cannot be loaded, or the address is taken.
    """
    has_key = bool(guard.keys(options))
    with _listening(options) as listening, contextlib.closing(Served.open(path, options)) as served:
        config = uvicorn.Config(
            build(served, write),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=options.grace_seconds,  # type: ignore[arg-type]  # it waits for any number
        )
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        say(f"{path} is served as {', '.join(served.names)} at http://{shown}:{port}/v1 (Ctrl-C ends it)")
        if not has_key and options.host not in LOOPBACK:
            say(f"warning: whoever reaches {options.host} can use it: give it a key (--api-key-file FILE)")
        served.start()
        asyncio.run(Server(config).serve([listening]))


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
