"""The application: which path does what, and how errors are told."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from tunesmith import __version__
from tunesmith.errors import TunesmithError, near
from tunesmith.serve import chat, completions, vectors
from tunesmith.serve.answering import account_of
from tunesmith.serve.guard import Guard, too_large
from tunesmith.serve.metrics import CONTENT_TYPE, Metrics
from tunesmith.serve.options import Serving
from tunesmith.serve.problem import GONE, Problem, of
from tunesmith.serve.requests import Asked, Chat, Completion, Embedding, Score, read
from tunesmith.serve.served import Served

Answer = Callable[[Served, Any, Request], Awaitable[Response]]
POSTS: dict[str, tuple[type[Asked], Answer]] = {
    "/v1/chat/completions": (Chat, chat.answer),
    "/v1/completions": (Completion, completions.answer),
    "/v1/embeddings": (Embedding, vectors.embeddings),
    "/v1/score": (Score, vectors.score),
}
GETS = ("/v1/models", "/health", "/metrics")


def build(served: Served, write: Callable[[str], None]) -> ASGIApp:
    """The application of a served model. `write` gets a line of each request."""
    metrics = Metrics()
    app = FastAPI(title="tunesmith", version=__version__, docs_url=None, redoc_url=None)
    _tell_errors(app)
    for path, (kind, answer) in POSTS.items():
        schema = {"content": {"application/json": {"schema": kind.model_json_schema()}}, "required": True}
        summary = (kind.__doc__ or "").strip()
        app.post(path, summary=summary, openapi_extra={"requestBody": schema})(_endpoint(served, kind, answer))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that may be asked."""
        return {"object": "list", "data": [_model(served, name) for name in served.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        served.check(name)
        return _model(served, name)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the model does what it is asked."""
        worker = served.running
        well = worker is None or worker.healthy
        return JSONResponse({"status": "ok" if well else "failing"}, 200 if well else 503)

    @app.get("/metrics")
    async def numbers() -> Response:
        """What was done so far."""
        return PlainTextResponse(metrics.text(served.running), media_type=CONTENT_TYPE)

    options = served.options
    guarded: ASGIApp = Guard(app, options, metrics, (*POSTS, *GETS), write)
    if options.cors_origin:
        guarded = CORSMiddleware(guarded, allow_origins=options.cors_origin, allow_methods=["*"], allow_headers=["*"])
    return guarded


def _endpoint(served: Served, kind: type[Asked], answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        raw = await _body(request, served.options)
        account_of(request).body_bytes = len(raw)
        return await answer(served, read(kind, raw), request)

    return endpoint


async def _body(request: Request, options: Serving) -> bytes:
    """The bytes of a request. Raises Problem when there are too many, or they do not come."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(options.receive_seconds):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > options.max_body_bytes:
                    raise too_large(options)
    except TimeoutError:
        raise Problem(f"the request did not come within {options.receive_seconds:g} seconds", 408) from None
    except ClientDisconnect:
        raise Problem("the client has gone before its request was whole", GONE) from None
    return b"".join(parts)


def _model(served: Served, name: str) -> dict[str, Any]:
    found = {"id": name, "object": "model", "created": served.created, "owned_by": "tunesmith"}
    if name in served.speakers:
        found |= {"max_model_len": served.context, "parent": None if name == served.name else served.name}
    return found


def _tell_errors(app: FastAPI) -> None:
    """Have every error told as OpenAI's are."""

    @app.exception_handler(TunesmithError)
    async def ours(request: Request, error: TunesmithError) -> JSONResponse:
        problem = of(error)
        return JSONResponse(problem.body, problem.status, problem.headers)

    @app.exception_handler(HTTPException)
    async def of_paths(request: Request, error: HTTPException) -> JSONResponse:
        path, known = request.url.path, (*POSTS, *GETS)
        if error.status_code == 404:
            problem = Problem(f"there is no path {path}. {near(path, known)}", 404, code="not_found")
        else:
            problem = Problem(f"{request.method} {path}: {error.detail}", error.status_code)
        return JSONResponse(problem.body, problem.status, error.headers)
