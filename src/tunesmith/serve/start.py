"""The way to the server, whose libraries are an extra."""

from collections.abc import Callable

from tunesmith import extras
from tunesmith.serve.options import Serving


def serve(path: str, options: Serving, say: Callable[[str], None], write: Callable[[str], None]) -> None:
    """Serve what `path` names: see `server.run`. Raises MissingExtra when the extra is not installed."""
    extras.need("a server", "serve")
    from tunesmith.serve import server

    server.run(path, options, say, write)
