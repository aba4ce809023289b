"""A server that speaks as OpenAI's does: its address, its key, and requests that are made again when it is busy."""

import json
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from threading import Event
from typing import Annotated, Any, TypeVar

from pydantic import Field, model_validator

from tunesmith.errors import ModelError, RecipeError, near
from tunesmith.explain import Explained

FOR_NOW = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # HTTP codes that another try may not get
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
MOST_BYTES = 2**22  # of an answer: many times what any number of tokens that is asked for takes
LONGEST_REASON = 300  # characters of a server's message
CHAT, TEXTS, MODELS = "/chat/completions", "/completions", "/models"  # what is asked there
SCHEMES = ("http://", "https://")
Told = TypeVar("Told")


class Server(Explained):
    """How a model is asked that is behind an address: http://HOST:PORT/v1, or http://HOST:PORT/v1#MODEL."""

    key_variable: str | None = None
    """Environment variable that holds the key of an address. None: no key is sent."""
    key_file: str | None = None
    """File that holds the key instead."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """How long to wait for an answer."""
    max_retries: Annotated[int, Field(ge=0, le=20)] = 5
    """How often a request is made again when it fails for now, each time after a longer wait. A server that nobody
    listens for at the first request is not waited for."""
    max_concurrent: Annotated[int, Field(ge=1, le=1024)] = 8
    """Requests that are on their way at a time."""
    tokenizer: str | None = None
    """Run, folder or hub id with the tokenizer of the server's model: prompts are sent as its tokens, as they would be
    made in this process. None: as messages, which the server writes by its own template."""
    only_openai: bool = False
    """Whether options are left out that OpenAI's own server refuses: top_k, min_p, repetition_penalty. They are then
    what the server's model says."""

    @model_validator(mode="after")
    def _goes_together(self) -> "Server":
        if self.key_variable is not None and self.key_file is not None:
            raise ValueError("key_variable and key_file both say where the key is: say one")
        return self

    @property
    def key(self) -> str | None:
        """The key. Raises RecipeError where it is said to be somewhere, and is not there."""
        if self.key_file is None:
            return key_of(self.key_variable, "server.key_variable")
        try:
            key = Path(self.key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"server.key_file: {self.key_file!r} cannot be read: {error}") from None
        return _checked(key, "server.key_file", f"{self.key_file!r}")


def taken(said: Mapping[str, Any]) -> tuple[dict[str, Any], Server]:
    """What words say apart from `server.option=value`, and what these say. Raises RecipeError."""
    options = said.get("server", {})
    if not isinstance(options, dict):
        raise RecipeError(f"server={options!r} says nothing: say an option of it, as in server.timeout_seconds=60")
    return {name: value for name, value in said.items() if name != "server"}, Server(**options)


def server_of(words: Sequence[str]) -> Server:
    """How a server is asked, by `server.option=value` words. Raises RecipeError for other ones."""
    from tunesmith.recipe_text import read_words

    others, server = taken(read_words({}, words))
    if others:
        raise RecipeError(
            f"{next(iter(others))} is no option here: only server.X=Y is, as in server.timeout_seconds=60"
        )
    return server


def is_address(path: str) -> bool:
    """Whether what a person names is a server's address, and no folder or hub id."""
    return path.startswith(SCHEMES)


def key_of(variable: str | None, option: str = "key_variable") -> str | None:
    """The key in an environment variable, where one is named. Raises RecipeError when it has none."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RecipeError(f"{option}: the environment variable {variable!r} is not set, or is empty")
    return _checked(key, option, repr(variable))


def _checked(key: str, option: str, where: str) -> str:
    if not key or not key.isascii() or not key.isprintable():
        raise RecipeError(f"{option}: {where} holds {'characters that no key has' if key else 'no key'}")
    return key


def problem_of(address: str, named: str) -> str | None:
    """What is wrong with an address: it has no host, a port that is none, or a password in it, which is not shown."""
    parts = urllib.parse.urlsplit(address)
    try:
        whole = parts.hostname is not None and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole:
        return f"{named} is no address. Say it as http://127.0.0.1:8000/v1"
    if parts.username is not None or parts.query:
        return "an address has no user, password or query in it: say key_variable=NAME, where the key is"
    return None


def shown(address: str) -> str:
    """An address without the user, password and query that it may hold."""
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key would go to an address that nobody named."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Message, newurl: str) -> None:
        """No request."""


OPENER = urllib.request.build_opener(_NoRedirect)


class Rejected(ModelError):
    """A server that refuses a request, and would another time; `code` is HTTP's."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Endpoint:
    """An address that is asked. The key is sent to it, and never shown."""

    address: str
    key: str | None = None
    timeout_seconds: float = 120.0
    max_retries: int = 5
    option: str = "key_variable"  # which a key is said by
    wait: Callable[[float], None] = time.sleep
    reached: Event = field(default_factory=Event, repr=False, compare=False)  # it answered once

    @classmethod
    def of(cls, address: str, how: Server) -> "Endpoint":
        """The endpoint of an address. Raises RecipeError where it, or its key, is none."""
        problem = problem_of(address, shown(address))
        if problem is not None:
            raise RecipeError(f"{shown(address)}: {problem}" if shown(address) not in problem else problem)
        address = urllib.parse.urldefrag(address).url.rstrip("/")
        return cls(address, how.key, how.timeout_seconds, how.max_retries, "server.key_variable")

    def get(self, path: str) -> Any:
        """What it tells there. Raises ModelError as `post`."""
        return self._asked(path, None, lambda answer: self._json(path, self._read(path, answer)))

    def post(self, path: str, body: Any) -> Any:
        """What it answers, read as JSON.

        Raises:
            ModelError: the server refuses, cannot be reached after `max_retries` more tries, or answers no JSON.
        """
        return self._asked(path, body, lambda answer: self._json(path, self._read(path, answer)))

    def events(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        """The events of a stream as they come; once it has begun, it is not asked for again. Raises as `post`."""
        answer = self._asked(path, body, lambda answer: answer, close=False)
        with answer:
            try:
                while line := answer.readline(MOST_BYTES):
                    kind, _, said = line.strip().partition(b":")
                    if kind != b"data":
                        continue
                    if said.strip() == b"[DONE]":
                        return
                    event = self._json(path, said)
                    if not isinstance(event, dict) or event.get("error"):
                        raise ModelError(f"{self.place(path)} ended its answer: {self.told(said)}")
                    yield event
            except (OSError, HTTPException) as error:
                raise ModelError(f"{self.place(path)} broke off its answer: {self._reason(error)}") from None

    def place(self, path: str) -> str:
        """A path of it, as it is shown."""
        return shown(self.address + path)

    def told(self, content: bytes) -> str:
        """The beginning of a server's message on one line, without the key, which some servers repeat."""
        text = " ".join(content.decode(errors="replace").split())
        return (text.replace(self.key, "***") if self.key else text)[:LONGEST_REASON]

    def _asked(self, path: str, body: Any, take: Callable[[Any], Told], close: bool = True) -> Told:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        tries, reason = self.max_retries + 1, ""
        for number in range(tries):
            pause = min(FIRST_WAIT_SECONDS * 2**number, LONGEST_WAIT_SECONDS)
            request = urllib.request.Request(self.address + path, content, headers)
            try:
                answer = OPENER.open(request, timeout=self.timeout_seconds)
                self.reached.set()
                if not close:
                    return take(answer)
                with answer:
                    return take(answer)
            except urllib.error.HTTPError as error:
                self.reached.set()
                with error:
                    reason = f"HTTP {error.code}: {self.told(error.read(MOST_BYTES))}"
                if error.code not in FOR_NOW:
                    raise Rejected(
                        f"{self.place(path)} refuses: {reason}{self._hint(error.code)}", error.code
                    ) from None
                pause = max(pause, _asked_to_wait(error.headers))
            except (OSError, HTTPException) as error:  # unreachable, cut off, or too slow
                reason = self._reason(error)
                if _nobody(error) and not self.reached.is_set():
                    raise ModelError(
                        f"{self.place(path)} cannot be reached: {reason}. Start its server, or say another address"
                    ) from None
            if number + 1 < tries:
                self.wait(pause)
        raise ModelError(f"{self.place(path)} gave no answer in {tries} tries: {reason}. Run the same command to go on")

    def _read(self, path: str, answer: Any) -> bytes:
        content: bytes = answer.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ModelError(f"{self.place(path)} answers with more than {MOST_BYTES:,} bytes")
        return content

    def _json(self, path: str, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise self.strange(path, content) from None

    def strange(self, path: str, answer: Any) -> ModelError:
        """The error of an answer that is not of the form that OpenAI's have."""
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return ModelError(f"{self.place(path)} does not answer as OpenAI's does: {self.told(content)}")

    def _reason(self, error: Exception) -> str:
        return self.told(str(getattr(error, "reason", error)).encode()) or type(error).__name__

    def _hint(self, code: int) -> str:
        if code in (401, 403):
            return f". Say {self.option}=NAME, the environment variable that holds its key"
        return ". Give the address that it redirects to" if 300 <= code < 400 else ""


def _nobody(error: Exception) -> bool:
    """Whether no server listens at an address, or nothing has its name."""
    return isinstance(getattr(error, "reason", error), (ConnectionRefusedError, socket.gaierror))


def _asked_to_wait(headers: Message) -> float:
    """The seconds of a Retry-After header, where it says seconds."""
    said = headers.get("Retry-After", "")
    return min(float(said), LONGEST_WAIT_SECONDS) if said.isdecimal() else 0.0


def chosen(endpoint: Endpoint, address: str) -> dict[str, Any]:
    """What a server tells of the model that an address names behind `#`, or of the only one that it has.

    Raises:
        ModelError: it has no such model, or several and none is named.
    """
    name = urllib.parse.unquote(urllib.parse.urlsplit(address).fragment)
    answer = endpoint.get(MODELS)
    try:
        models = {one["id"]: one for one in answer["data"]}
    except (LookupError, TypeError):
        raise endpoint.strange(MODELS, answer) from None
    if name in models:
        return dict(models[name])
    if name:
        raise ModelError(f"{endpoint.address} has no model {name!r}. {near(name, models)}")
    if len(models) != 1:
        known = ", ".join(sorted(models)) or "none"
        raise ModelError(f"{endpoint.address} has the models {known}: name one, as in {endpoint.address}#NAME")
    return dict(next(iter(models.values())))


def choices(endpoint: Endpoint, path: str, answer: Any, part: str) -> list[dict[str, Any]]:
    """The choices of an answer in the order of their index, each of which has such a part. Raises ModelError."""
    try:
        found = sorted(answer["choices"], key=lambda one: one.get("index", 0))
        whole = bool(found) and all(isinstance(one[part], str if part == "text" else dict) for one in found)
    except (LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise endpoint.strange(path, answer)
    return found


def text_of(content: Any) -> str:
    """A text of an answer, "" for one that has none, as one of tool calls; half characters cannot be written."""
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""
