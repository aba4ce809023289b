"""The way to the server, whose libraries are an extra."""

from collections.abc import Callable

from tunesmith.errors import MissingExtra
from tunesmith.serve.options import Serving


def serve(path: str, options: Serving, say: Callable[[str], None], write: Callable[[str], None]) -> None:
    """Serve what `path` names: see `server.run`. Raises MissingExtra when the extra is not installed."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"a server needs {error.name}: pip install 'tunesmith[serve]'") from error
    from tunesmith.serve import server

    server.run(path, options, say, write)
