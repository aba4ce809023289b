"""What is wrong with a request, as OpenAI says it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.generate.batch import Unheld
from tunesmith.generate.worker import Failed, Refused

RETRY_SECONDS = 1
GONE = 499  # as nginx calls it: whoever asked is not there any more


class Problem(TunesmithError):
    """A request that is not answered: a status, and what the answer's body says of it."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def too_long(tokens: int, answer: int, context: int, param: str) -> Problem:
    """A prompt and an answer that the model's context has no room for."""
    return Problem(
        f"This model's maximum context length is {context} tokens, and {tokens} tokens of the prompt and {answer} of "
        "the answer were asked for. Shorten the prompt, or ask for fewer tokens.",
        param=param,
        code="context_length_exceeded",
    )


def of(error: Exception) -> Problem:
    """How an error of the package is told to who asked."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Refused):
        return Problem(str(error), 503, code="overloaded", headers={"Retry-After": str(RETRY_SECONDS)})
    if isinstance(error, Failed) and isinstance(error.__cause__, Unheld):
        return Problem(f"{error}. Ask for a smaller form", code="invalid_form")
    if isinstance(error, Failed):
        return Problem(f"the answer failed: {error}", 500, code="failed")
    if isinstance(error, TunesmithError):
        return Problem(str(error))
    return Problem(f"an error inside of the server: {type(error).__name__}", 500, code="internal_error")
