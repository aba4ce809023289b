"""What may be asked for: the bodies of requests, by the names that OpenAI's clients and vLLM's use.

A field that nobody knows is refused, with near names. Some fields of OpenAI's change nothing here and are taken.
Values are of the kind that JSON has them in: "1" is no number, and true is none. What there may be many of is counted
before it is looked at, and looked at up to the first that is wrong: a request is refused as fast as it is read.
"""

import json
import re
from collections import Counter
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from tunesmith.component import Section
from tunesmith.errors import near
from tunesmith.explain import OF_FIELD, explain, wrong
from tunesmith.generate.asked import Sampling
from tunesmith.serve.problem import Problem

MOST_ANSWERS, MOST_STOPS, MOST_INPUTS, MOST_BIASES, MOST_FIELDS = 128, 16, 2048, 1024, 256
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS, fail_fast=True)]
Lists = Annotated[list[Ids], Field(min_length=1, max_length=MOST_INPUTS, fail_fast=True)]
LONG_NUMBER = re.compile(rb'(?:"([^"\\]{1,64})"\s*:\s*)?-?\d{4301}')  # of more digits than Python reads


def _kind(value: Any) -> str | None:
    """What an input is, by its first item: the others are to be of its kind."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    return "texts" if isinstance(first, str) else "lists" if isinstance(first, list) else "ids"


def _judged(value: Any) -> str | None:
    """The same of what is judged."""
    if isinstance(value, str | dict):
        return "text" if isinstance(value, str) else "row"
    if not isinstance(value, list):
        return None
    return "texts" if value and isinstance(value[0], str) else "rows"


Input = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[Lists, Tag("lists")],
    Discriminator(
        _kind,
        custom_error_type="input",
        custom_error_message="must be a text, a list of texts, a list of tokens, or a list of such lists",
    ),
]


def _few(most: int) -> BeforeValidator:
    """Refuse what has more items, before they are looked at."""

    def count(value: Any) -> Any:
        if isinstance(value, dict | list) and len(value) > most:
            raise ValueError(f"must have at most {most:,} items, and has {len(value):,}")
        return value

    return BeforeValidator(count)


class Said(Section):
    """A part of a request."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _is_small(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MOST_FIELDS:
            raise ValueError(f"must have at most {MOST_FIELDS} fields, and has {len(value):,}")
        return value


class Asked(Said):
    """What every request may say."""

    model: str | None = None
    """Which of the served models. None: the first."""
    user: str | None = None
    """Changes nothing."""
    metadata: dict[str, Any] | None = None
    """Changes nothing."""


Body = TypeVar("Body", bound=Asked)


class StreamOptions(Said):
    """What a stream says beside the answer."""

    include_usage: bool = False
    """Whether the numbers of tokens come with the last piece."""
    include_obfuscation: bool = False
    """Changes nothing."""


class ResponseFormat(Said):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    """Text, any JSON object, or JSON of a schema."""
    json_schema: dict[str, Any] | None = None
    """`schema` is the JSON Schema; `name`, `description` and `strict` change nothing: it is always kept to."""

    @model_validator(mode="after")
    def _goes_together(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise wrong("json_schema", f"belongs to the type json_schema, which needs it (the type was {self.type!r})")
        if self.json_schema is not None and not isinstance(self.json_schema.get("schema"), dict):
            raise wrong("json_schema", "must have a mapping under schema")
        return self


class StructuredOutputs(Said):
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
    logit_bias: Annotated[
        dict[Annotated[int, Field(strict=False)], Annotated[float, Field(ge=-100, le=100)]], _few(MOST_BIASES)
    ] = {}
    """As `Sampling`."""
    stop: Annotated[str | list[str], _few(MOST_STOPS)] = []
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
            raise wrong("structured_outputs", "response_format says what an answer must be, too: say one")
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


class Function(Said):
    """A function that an answer may call."""

    name: str
    """Its name."""
    description: str | None = None
    """What it is for."""
    parameters: dict[str, Any] | None = None
    """What it takes, as JSON Schema."""
    strict: bool | None = None
    """Whether its arguments must be of the schema wherever it is called: they are, where a call is required."""

    @field_validator("name", mode="after")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if re.fullmatch(r"[\w.-]{1,128}", value) is None:
            raise ValueError("must be 1 to 128 letters, digits, and any of _ . -")
        return value


class Tool(Said):
    """A tool that an answer may use."""

    type: Literal["function"]
    """The only kind that there is."""
    function: Function
    """The function."""


class FunctionName(Said):
    """A function by its name."""

    name: str
    """The name."""


class NamedTool(Said):
    """The tool that an answer must call."""

    type: Literal["function"] = "function"
    """The only kind that there is."""
    function: FunctionName
    """Its function."""


class Chat(Drawn):
    """A conversation to be answered."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)]
    """Its turns."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of an answer at most. None: what there is room for."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """As `max_tokens`, by its newer name."""
    logprobs: bool = False
    """Whether the log-probabilities of the tokens are told."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Likeliest tokens that are told beside each."""
    tools: Annotated[list[Tool], Field(fail_fast=True)] = []
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
            raise wrong("top_logprobs", "needs logprobs: true")
        names = [tool.function.name for tool in self.tools]
        twice = next((name for name, number in Counter(names).items() if number > 1), None)
        if twice is not None:
            raise wrong("tools", f"must have different names, and two are called {twice!r}")
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        if named is not None and named not in names:
            raise wrong("tool_choice", f"names {named!r}, which is none of the tools. {near(named, names)}")
        if self.tool_choice == "required" and not names:
            raise wrong("tool_choice", "is 'required', and there are no tools")
        return self


class Completion(Drawn):
    """Texts to go on with."""

    prompt: Input
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
            raise wrong("max_tokens", "is 0, and without echo there is nothing to tell")
        return self


class Embedding(Asked):
    """Texts to be told as vectors."""

    input: Input
    """A text, its tokens, or several of them."""
    encoding_format: Literal["float", "base64"] = "float"
    """A list of numbers, or float32 in little-endian order as base64."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Size of the vectors: no other than the model's own, which is not made to be cut."""


class Score(Asked):
    """What a reward model or classifier is asked to judge."""

    input: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[dict[str, Any], Tag("row")]
        | Annotated[Texts, Tag("texts")]
        | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_INPUTS, fail_fast=True), Tag("rows")],
        Discriminator(
            _judged,
            custom_error_type="input",
            custom_error_message="must be a text, a row, or a list of either",
        ),
    ]
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
        if not isinstance(error, json.JSONDecodeError) and (number := LONG_NUMBER.search(raw)) is not None:
            field = number[1].decode(errors="replace") if number[1] else None
            raise Problem(f"{field or 'the body'}: a number has more than 4,300 digits", param=field) from None
        raise Problem(f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise Problem(f"the body must be a JSON object and is {type(body).__name__}", code="invalid_json")
    return {name: value for name, value in body.items() if value is not None}


def read(kind: type[Body], raw: bytes) -> Body:
    """The request of a body. Raises Problem, which names the field."""
    try:
        return kind.model_validate(parsed(raw))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        named = first["loc"] or ((first["ctx"]["field"],) if first["type"] == OF_FIELD else ())
        raise Problem(explain(error, kind), param=str(named[0]) if named else None) from None
