"""Who writes: a model of this machine, or one behind an address that speaks as OpenAI's does."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tunesmith.generate.endpoint import CHAT, Endpoint, choices, key_of, text_of
from tunesmith.synthesis.options import Synthesis

if TYPE_CHECKING:
    from tunesmith.generate.engine import Generator


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


class Address:
    """A model of a server with OpenAI's `/chat/completions`. The key is sent to that address, and never shown."""

    def __init__(self, options: Synthesis, wait: Callable[[float], None] = time.sleep) -> None:
        self._name = options.name
        address, key = options.model.rstrip("/"), key_of(options.key_variable)
        self._endpoint = Endpoint(address, key, options.timeout_seconds, options.max_retries, wait=wait)

    def write(
        self, prompt: str, *, max_new_tokens: int, temperature: float, top_p: float, seed: int, stop: str | None
    ) -> Reply:
        """The answer to a prompt, up to the text `stop`.

        Raises:
            ModelError: the server refuses, cannot be reached after `max_retries` more tries, or answers otherwise
                than OpenAI's does.
        """
        asked = {
            "model": self._name,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            **({} if stop is None else {"stop": [stop]}),
        }
        answer = self._endpoint.post(CHAT, asked)
        choice = choices(self._endpoint, CHAT, answer, "message")[0]
        return Reply(text_of(choice["message"].get("content")), choice.get("finish_reason") == "length")


def find(options: Synthesis) -> Author:
    """The author that the options name. Raises RunError, ModelError, RecipeError."""
    if options.is_address:
        return Address(options)
    from tunesmith.generate.engine import Generator

    return Local(Generator.open(options.model))
