"""What stands before every request: its key, its size, how many there are; and what is written of it afterwards."""

import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.errors import RecipeError
from tunesmith.serve.answering import Account
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.options import Serving
from tunesmith.serve.problem import GONE, RETRY_SECONDS, Problem, of

log = logging.getLogger(__name__)

KEY_VARIABLE = "TUNESMITH_API_KEY"
OPEN_PATHS = ("/health",)  # which need no key
BEYOND = 64  # requests that are read, beside those that have a place or wait for one


def keys(options: Serving) -> tuple[bytes, ...]:
    """Digests of the keys that requests may have. Raises RecipeError when their file has none, or is not there."""
    found = [os.environ[KEY_VARIABLE]] if os.environ.get(KEY_VARIABLE) else []
    if options.api_key_file is not None:
        try:
            lines = Path(options.api_key_file).expanduser().read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"--api-key-file: {options.api_key_file} cannot be read: {error}") from error
        if not lines:
            raise RecipeError(f"--api-key-file: {options.api_key_file} has no key in it")
        found += lines
    return tuple(_digest(key.encode()) for key in found)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Guard:
    """An ASGI application before another."""

    def __init__(
        self, app: ASGIApp, options: Serving, metrics: Metrics, paths: Iterable[str], write: Callable[[str], None]
    ) -> None:
        self.app, self.options, self.metrics = app, options, metrics
        self.paths = frozenset(paths)
        self.keys = keys(options)
        self.open = 0
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["account"] = account = Account()
        identity, status = secrets.token_hex(8), GONE

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identity.encode())]
            await send(message)

        self.open += 1
        try:
            self._refuse(scope)
            await self.app(scope, receive, sending)
        except Exception as error:  # noqa: BLE001  # what nobody foresaw is told to who asked, and in the log
            account.problem = account.problem or str(error)
            if not isinstance(error, Problem):
                log.error("request %s failed", identity, exc_info=error)
            if status == GONE:  # nothing was sent
                problem = of(error)
                response = JSONResponse(problem.body, problem.status, problem.headers)
                await response(scope, receive, sending)
        finally:
            self.open -= 1
            self._note(scope, status, account, identity)

    def _refuse(self, scope: Scope) -> None:
        """Raise Problem for a request that has no key, is too large, or is one too many."""
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN_PATHS and self.keys:
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            given = _digest(key.strip())
            known = [hmac.compare_digest(given, one) for one in self.keys]  # all of them: it takes the same time
            if kind.lower() != b"bearer" or not any(known):
                raise Problem(
                    "there is no such key: send one of the server's as `Authorization: Bearer KEY`",
                    401,
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        size = headers.get(b"content-length", b"0")
        if size.isdigit() and int(size) > self.options.max_body_bytes:
            raise too_large(self.options)
        if scope["method"] == "POST" and self.open > self.options.max_running + self.options.max_waiting + BEYOND:
            raise Problem(
                f"{self.open} requests are open: try again later",
                503,
                code="overloaded",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )

    def _note(self, scope: Scope, status: int, account: Account, identity: str) -> None:
        """Count a request, and write a line of it, without what it says."""
        seconds = time.monotonic() - account.started
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.metrics.count(path, status, account, seconds)
        line: dict[str, Any] = {
            "time": round(time.time(), 3),
            "id": identity,
            "method": scope["method"],
            "path": path,
            "status": status,
            "seconds": round(seconds, 4),
        }
        if account.model is not None:
            line |= {"model": account.model, "stream": account.stream, "prompt_tokens": account.prompt_tokens}
            line |= {"completion_tokens": account.generated_tokens, "finish": account.finish}
        for name in ("queued_seconds", "first_token_seconds"):
            if (value := getattr(account, name)) is not None:
                line[name] = round(value, 4)
        self._write(json.dumps(line, ensure_ascii=False))


def too_large(options: Serving) -> Problem:
    """A body above the limit."""
    return Problem(f"the request is larger than {options.max_body_bytes:,} bytes", 413, code="request_too_large")
