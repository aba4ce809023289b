"""What may be asked for: the bodies of requests, by the names that OpenAI's clients and vLLM's use.

A field that nobody knows is refused, with near names. Some fields of OpenAI's change nothing here and are taken.
"""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from tunesmith.component import Section
from tunesmith.explain import explain
from tunesmith.generate.sampling import Sampling
from tunesmith.serve.problem import Problem

MOST_ANSWERS, MOST_STOPS, MOST_INPUTS = 128, 16, 2048
Ids = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]
Texts = Annotated[list[Annotated[str, Field(strict=True)]], Field(min_length=1, max_length=MOST_INPUTS)]
Lists = Annotated[list[Ids], Field(min_length=1, max_length=MOST_INPUTS)]


class Asked(Section):
    """What every request may say."""

    model: str | None = None
    """Which of the served models. None: the first."""
    user: str | None = None
    """Changes nothing."""
    metadata: dict[str, Any] | None = None
    """Changes nothing."""


Body = TypeVar("Body", bound=Asked)


class StreamOptions(Section):
    """What a stream says beside the answer."""

    include_usage: bool = False
    """Whether the numbers of tokens come with the last piece."""
    include_obfuscation: bool = False
    """Changes nothing."""


class ResponseFormat(Section):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    """Text, any JSON object, or JSON of a schema."""
    json_schema: dict[str, Any] | None = None
    """`schema` is the JSON Schema; `name`, `description` and `strict` change nothing: it is always kept to."""

    @model_validator(mode="after")
    def _goes_together(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, which needs it")
        if self.json_schema is not None and not isinstance(self.json_schema.get("schema"), dict):
            raise ValueError("json_schema must have a mapping under schema")
        return self


class StructuredOutputs(Section):
    """What an answer must be that is no JSON, as vLLM has it."""

    regex: Annotated[str, Field(min_length=1)]
    """A regular expression of the whole answer, behind its reasoning."""


class Drawn(Asked):
    """How answers are drawn."""

    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] = 1
    """Answers to each prompt."""
    stream: bool = False
    """Whether the answer comes in pieces, as it is made."""
    stream_options: StreamOptions = StreamOptions()
    """What a stream says beside the answer."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """As `Sampling`; None: what the model's generation config says, or 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """As `Sampling`."""
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """As `Sampling`; -1 is all, too."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """As `Sampling`."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    """As `Sampling`."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """As `Sampling`."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """As `Sampling`."""
    logit_bias: Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] = {}
    """As `Sampling`."""
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] = []
    """Text, or texts, before which an answer ends."""
    seed: int | None = None
    """Decides what is drawn; the second answer of `n` has the next one."""
    response_format: ResponseFormat = ResponseFormat(type="text")
    """What an answer must be, behind its reasoning: JSON. Where tools may be called, it may be calls instead."""
    structured_outputs: StructuredOutputs | None = None
    """The same for a regular expression."""

    @model_validator(mode="after")
    def _has_one_form(self) -> "Drawn":
        if self.structured_outputs is not None and self.response_format.type != "text":
            raise ValueError("response_format and structured_outputs both say what an answer must be: say one")
        return self

    def sampling(self, defaults: dict[str, Any], max_new_tokens: int, logprobs: int | None) -> Sampling:
        """How answers are drawn, with what the model's generation config says of what the request leaves open."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        said = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        drawn = {"temperature": 1.0} | defaults | said
        return Sampling(
            **drawn | {"top_k": max(0, drawn.get("top_k", 0))},
            max_new_tokens=max_new_tokens,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            stop=tuple(one for one in ([self.stop] if isinstance(self.stop, str) else self.stop) if one),
            seed=None if self.seed is None else self.seed % 2**63,
            logprobs=logprobs,
        )


class Function(Section):
    """A function that an answer may call."""

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,128}$")]
    """Its name."""
    description: str | None = None
    """What it is for."""
    parameters: dict[str, Any] | None = None
    """What it takes, as JSON Schema."""
    strict: bool | None = None
    """Whether its arguments must be of the schema wherever it is called: they are, where a call is required."""


class Tool(Section):
    """A tool that an answer may use."""

    type: Literal["function"]
    """The only kind that there is."""
    function: Function
    """The function."""


class FunctionName(Section):
    """A function by its name."""

    name: str
    """The name."""


class NamedTool(Section):
    """The tool that an answer must call."""

    type: Literal["function"] = "function"
    """The only kind that there is."""
    function: FunctionName
    """Its function."""


class Chat(Drawn):
    """A conversation to be answered."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    """Its turns."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of an answer at most. None: what there is room for."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """As `max_tokens`, by its newer name."""
    logprobs: bool = False
    """Whether the log-probabilities of the tokens are told."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Likeliest tokens that are told beside each."""
    tools: list[Tool] = []
    """What an answer may use."""
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    """Whether an answer calls tools: never (they are not shown to it), as the model likes, always, or the one that is
    named. A call that must be is held to the parameters of its tool."""
    parallel_tool_calls: bool = True
    """Whether an answer that must call tools may have more than one call; else its model decides."""
    store: bool = False
    """Changes nothing."""
    service_tier: str | None = None
    """Changes nothing."""
    safety_identifier: str | None = None
    """Changes nothing."""
    prompt_cache_key: str | None = None
    """Changes nothing."""

    @model_validator(mode="after")
    def _goes_together(self) -> "Chat":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("tools must have different names")
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        if named is not None and named not in names:
            raise ValueError(f"tool_choice names {named!r}, which is none of the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice is required, and there are no tools")
        return self


class Completion(Drawn):
    """Texts to go on with."""

    prompt: str | Texts | Ids | Lists
    """A text, its tokens, or several of them."""
    max_tokens: Annotated[int, Field(ge=0)] = 16
    """Tokens of an answer at most; 0 with `echo`: only the prompt."""
    echo: bool = False
    """Whether the prompt is told before the answer."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Likeliest tokens that are told with the log-probability of each."""

    @model_validator(mode="after")
    def _goes_together(self) -> "Completion":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, and without echo there is nothing to tell")
        return self


class Embedding(Asked):
    """Texts to be told as vectors."""

    input: str | Texts | Ids | Lists
    """A text, its tokens, or several of them."""
    encoding_format: Literal["float", "base64"] = "float"
    """A list of numbers, or float32 in little-endian order as base64."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Size of the vectors: no other than the model's own, which is not made to be cut."""


class Score(Asked):
    """What a reward model or classifier is asked to judge."""

    input: str | Texts | dict[str, Any] | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_INPUTS)]
    """Texts to classify; or rows as `tunesmith score` reads them: a prompt or messages and `answers`, a text, words."""

    @field_validator("input", mode="after")
    @classmethod
    def _says_something(cls, value: Any) -> Any:
        if value in ("", {}):
            raise ValueError("is empty")
        return value


def parsed(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises Problem."""
    try:
        body = json.loads(raw)
        if rb"\ud" in raw.lower():
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Problem("the body holds half of a surrogate pair, which is no text") from None
    except (ValueError, RecursionError) as error:
        raise Problem(f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise Problem(f"the body must be a JSON object and is {type(body).__name__}", code="invalid_json")
    return {name: value for name, value in body.items() if value is not None}


def read(kind: type[Body], raw: bytes) -> Body:
    """The request of a body. Raises Problem, which names the field."""
    try:
        return kind.model_validate(parsed(raw))
    except ValidationError as error:
        named = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
        raise Problem(explain(error, kind), param=str(named[0]) if named else None) from None
