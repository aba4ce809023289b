"""A model that goes on with answers one after the other, each with a cache of its own: any architecture can.

Letters: P tokens of the prompt or of the step, K tokens of an answer, B answers, V vocabulary.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.engine.model import base_of
from tunesmith.errors import ModelError
from tunesmith.generate.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Place:
    """An answer in the making: its cache, and what an encoder read of the prompt."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = prompt
        self.encoded: Any = None
        self.cache: Any = None


class Alone(Decoder):
    """Decodes one answer after the other."""

    most = 1

    def __init__(self, model: "PreTrainedModel") -> None:
        self.model = model

    def begin(self, prompt: Sequence[int], adapter: str | None = None) -> _Place:
        """A place for an answer."""
        return _Place(prompt)

    def read(self, places: Sequence[_Place]) -> tuple[list[_Place], torch.Tensor]:
        """Read the first prompt."""
        place = places[0]
        first = place.prompt
        if encodes(self.model):
            place.encoded, first = encode(self.model, place.prompt), [start_token(self.model)]
        return [place], self._next(place, first)[None]

    def step(self, places: Sequence[_Place], tokens: Sequence[int]) -> torch.Tensor:
        """Go on with one token each."""
        return torch.stack([self._next(place, [token]) for place, token in zip(places, tokens, strict=True)])

    def free(self, place: _Place) -> None:
        """Forget the cache."""
        place.cache = None

    @torch.no_grad()
    def _next(self, place: _Place, step: Sequence[int]) -> torch.Tensor:
        """The logits [V] after a step of tokens."""
        only_last = {"logits_to_keep": 1} if "logits_to_keep" in forward_options(self.model) else {}
        ids = torch.tensor([list(step)], device=self.model.device)  # [1, P]
        given = (
            {"input_ids": ids}
            if place.encoded is None
            else {"encoder_outputs": place.encoded, "decoder_input_ids": ids}
        )
        # virtual tokens, once put before a prompt, are in the cache
        told: Any = self.model if place.cache is None else base_of(self.model)
        output: Any = told(**given, past_key_values=place.cache, use_cache=True, **only_last)
        place.cache = output.past_key_values
        return output.logits[0, -1].float()


@torch.no_grad()
def logits_of(model: "PreTrainedModel", prompt_ids: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """The logits [K, V] that a model gives each of the tokens after a prompt, all in one pass: float32, on the CPU."""
    with answering(model):
        if encodes(model):
            step = torch.tensor([[start_token(model), *tokens[:-1]]], device=model.device)
            encoded = encode(model, prompt_ids)
            output: Any = model(encoder_outputs=encoded, decoder_input_ids=step, use_cache=False)
            return output.logits[0].float().cpu()
        only_last = {"logits_to_keep": len(tokens) + 1} if "logits_to_keep" in forward_options(model) else {}
        ids = torch.tensor([[*prompt_ids, *tokens]], device=model.device)
        output = model(input_ids=ids, use_cache=False, **only_last)
        return output.logits[0, -len(tokens) - 1 : -1].float().cpu()


def encodes(model: Any) -> bool:
    """Whether a model, or the one that peft stands around, has an encoder for the prompt beside its decoder."""
    return bool(base_of(model).config.is_encoder_decoder)


@torch.no_grad()
def encode(model: Any, prompt_ids: Sequence[int]) -> Any:
    """What the encoder of a model makes of a prompt."""
    base = base_of(model)
    return base.get_encoder()(input_ids=torch.tensor([list(prompt_ids)], device=base.device))


def start_token(model: Any) -> int:
    """The token that an answer of a decoder beside an encoder begins with. Raises ModelError when none is said."""
    base = base_of(model)
    said = (getattr(one, "decoder_start_token_id", None) for one in (base.generation_config, base.config))
    found = next((token for token in said if token is not None), None)
    if found is None:
        raise ModelError(
            f"{type(base).__name__} does not say which token starts an answer: set decoder_start_token_id in its "
            "generation_config.json"
        )
    return found


def forward_options(model: Any) -> Mapping[str, Any]:
    """What the forward pass of a model, or of the model that peft stands around, can be given."""
    base = base_of(model)
    return inspect.signature(base.forward).parameters


@contextlib.contextmanager
def answering(model: "PreTrainedModel") -> Iterator[None]:
    """A model in evaluation mode; after it, each of its parts as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
