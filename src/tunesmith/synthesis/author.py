"""Who writes: a model of this machine, or one behind an address that speaks as OpenAI's does."""

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Protocol

from tunesmith.errors import ModelError, RecipeError
from tunesmith.synthesis.options import Synthesis

if TYPE_CHECKING:
    from tunesmith.generate.engine import Generator

FOR_NOW = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # HTTP codes that another try may not get
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
MOST_BYTES = 2**22  # of an answer: many times what any number of tokens that is asked for takes
LONGEST_REASON = 300  # characters of a server's message


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote, and whether it was cut off by the limit of tokens."""

    text: str
    cut: bool


class Author(Protocol):
    """Whoever answers a prompt."""

    def write(
        self, prompt: str, *, max_new_tokens: int, temperature: float, top_p: float, seed: int, stop: str | None
    ) -> Reply:
        """The answer to a prompt, up to the text `stop`. Raises ModelError."""


class Local:
    """A model that tunesmith generates with. One without a chat template goes on with the prompt."""

    def __init__(self, generator: "Generator") -> None:
        self._generator = generator

    def write(
        self, prompt: str, *, max_new_tokens: int, temperature: float, top_p: float, seed: int, stop: str | None
    ) -> Reply:
        """The answer to a prompt, up to the text `stop`. Raises ModelError."""
        answer = self._generator.stream(
            [{"role": "user", "content": prompt}],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=() if stop is None else (stop,),
        )
        return Reply("".join(answer), answer.finish == "length")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key would go to an address that nobody named."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Message, newurl: str) -> None:
        """No request."""


class Address:
    """A model of a server with OpenAI's `/chat/completions`. The key is sent to that address, and never shown."""

    def __init__(self, options: Synthesis, wait: Callable[[float], None] = time.sleep) -> None:
        self._options = options
        self._wait = wait
        self._url = options.model.rstrip("/") + "/chat/completions"
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._key = _key(options.key_variable)

    def write(
        self, prompt: str, *, max_new_tokens: int, temperature: float, top_p: float, seed: int, stop: str | None
    ) -> Reply:
        """The answer to a prompt, up to the text `stop`.

        Raises:
            ModelError: the server refuses, cannot be reached after `max_retries` more tries, or answers otherwise
                than OpenAI's does.
        """
        asked = {
            "model": self._options.name,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            **({} if stop is None else {"stop": [stop]}),
        }
        answer = self._post(json.dumps(asked).encode())
        try:
            choice = json.loads(answer)["choices"][0]
            text, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ModelError(f"{shown(self._url)} does not answer as OpenAI's does: {self._told(answer)}") from None
        said = text if isinstance(text, str) else ""  # null, for an answer that is all tool calls
        return Reply(said.encode(errors="replace").decode(), cut)  # half characters cannot be written

    def _post(self, content: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        tries = self._options.max_retries + 1
        for number in range(tries):
            pause = min(FIRST_WAIT_SECONDS * 2**number, LONGEST_WAIT_SECONDS)
            request = urllib.request.Request(self._url, content, headers)
            try:
                with self._opener.open(request, timeout=self._options.timeout_seconds) as answer:
                    answered: bytes = answer.read(MOST_BYTES + 1)
                if len(answered) > MOST_BYTES:
                    raise ModelError(f"{shown(self._url)} answers with more than {MOST_BYTES:,} bytes")
                return answered
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"HTTP {error.code}: {self._told(error.read(MOST_BYTES))}"
                if error.code not in FOR_NOW:
                    raise ModelError(f"{shown(self._url)} refuses: {reason}{_hint(error.code)}") from None
                pause = max(pause, _asked_to_wait(error.headers))
            except (OSError, HTTPException) as error:  # unreachable, cut off, or too slow
                reason = self._told(str(getattr(error, "reason", error)).encode()) or type(error).__name__
            if number + 1 < tries:
                self._wait(pause)
        raise ModelError(f"{shown(self._url)} gave no answer in {tries} tries: {reason}. Run the same command to go on")

    def _told(self, content: bytes) -> str:
        """The beginning of a server's message on one line, without the key, which some servers repeat."""
        text = " ".join(content.decode(errors="replace").split())
        return (text.replace(self._key, "***") if self._key else text)[:LONGEST_REASON]


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RecipeError(f"key_variable: the environment variable {variable!r} is not set, or is empty")
    if not key.isascii() or not key.isprintable():
        raise RecipeError(f"key_variable: {variable!r} holds characters that no key has")
    return key


def _hint(code: int) -> str:
    if code in (401, 403):
        return ". Say key_variable=NAME, the environment variable that holds its key"
    return ". Give the address that it redirects to" if 300 <= code < 400 else ""


def _asked_to_wait(headers: Message) -> float:
    """The seconds of a Retry-After header, where it says seconds."""
    said = headers.get("Retry-After", "")
    return min(float(said), LONGEST_WAIT_SECONDS) if said.isdecimal() else 0.0


def shown(address: str) -> str:
    """An address without the user, password and query that it may hold."""
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def find(options: Synthesis) -> Author:
    """The author that the options name. Raises RunError, ModelError, RecipeError."""
    if options.is_address:
        return Address(options)
    from tunesmith.generate.engine import Generator

    return Local(Generator.open(options.model))
