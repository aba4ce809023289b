"""What is asked of an answer: the options of `predict` and `chat`. It imports nothing heavy."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from tunesmith.explain import Explained
from tunesmith.generate.endpoint import Server
from tunesmith.recipe_train import DeviceName


class Sampling(Explained):
    """How an answer is drawn, by the names that servers and libraries use."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """Tokens of an answer at most."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """What logits are divided by. 0: the likeliest token is taken."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Drawn is one of the likeliest tokens that hold so much of the probability (arXiv 1904.09751)."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Drawn is one of so many likeliest tokens. 0: of all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Drawn is a token with at least this share of the likeliest one's probability (arXiv 2407.01082)."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """What the logits of tokens of the prompt and the answer are divided by, or multiplied when negative
    (arXiv 1909.05858)."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken from the logit of each token that the answer has."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken from the logit of a token once for each time that the answer has it."""
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = {}
    """Added to the logits of tokens, by id."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts before which an answer ends, beside the tokens that end a turn of the model."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """What decides the draws. None: another each time."""
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    """Likeliest tokens whose log-probabilities are told with each token's own. None: no log-probabilities."""
    json_schema: dict[str, Any] | None = None
    """What an answer must be, behind its reasoning: JSON of this JSON Schema; `{type: object}`: any object."""
    regex: Annotated[str, Field(min_length=1)] | None = None
    """What an answer must be, behind its reasoning: as a whole what this regular expression says."""

    @model_validator(mode="after")
    def _goes_together(self) -> "Sampling":
        if self.json_schema is not None and self.regex is not None:
            raise ValueError("json_schema and regex both say what an answer must be: say one")
        return self

    def sampling(self) -> "Sampling":
        """The options that are those of every answer."""
        return Sampling(**{name: getattr(self, name) for name in Sampling.model_fields})


class Chatting(Sampling):
    """How a model answers in a chat; typed by these names alone, as in top_p=0.9."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Tokens of an answer at most."""
    seed: Annotated[int, Field(ge=0)] | None = 42
    """What decides the draws. None: another each time."""
    device: DeviceName = "auto"
    """Device to answer on. auto: the first present of cuda, xpu, mps, cpu."""
    server: Server = Server()
    """How a model is asked that is named by a server's address, http://HOST:PORT/v1."""
