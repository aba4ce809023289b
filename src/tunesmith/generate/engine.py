"""An answer from a model, token by token.

The loop is written out here, and not asked of transformers' `generate`, because a reader of an answer may
stop at any token, and because sampling draws from a generator of its own: an answer in the middle of a run
leaves the run's random numbers alone. On greedy tokens the two agree (tests/unit/generate).

Letters: P tokens of the prompt or of the step, V vocabulary.
"""

import contextlib
import inspect
import logging
from collections import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from tunesmith.data.prompt import prompt_ids
from tunesmith.data.sides import source_ids
from tunesmith.engine import rope
from tunesmith.engine.model import base_of, num_virtual_tokens
from tunesmith.errors import ModelError, RecipeError
from tunesmith.generate.load import load
from tunesmith.recipe import Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
Drawn = abc.Generator[int, None, None]
HALF_CHARACTER = "\ufffd"  # what a decoder writes for bytes that are no whole character


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the model is given it."""

    ids: tuple[int, ...]
    dropped_turns: int  # the oldest ones, which the model's context had no room for


class Answer(Iterator[str]):
    """An answer that is made as it is read: iterating gives pieces of text, never a part of a character.

    The fields grow with it: `ids` are its tokens so far, without the stop token; `finish` is None until the
    end, then `stop` (the model ended its turn) or `length` (no room, or no more tokens allowed).
    """

    def __init__(
        self,
        prompt: Prompt,
        tokens: Drawn,
        stops: frozenset[int],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> None:
        self.prompt = prompt
        self.ids: list[int] = []
        self.finish: Literal["stop", "length"] | None = None
        self._tokenizer = tokenizer
        self._pieces = self._make(tokens, stops)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Make no more of it."""
        self._pieces.close()

    def _make(self, tokens: Drawn, stops: frozenset[int]) -> abc.Generator[str, None, None]:
        with contextlib.closing(tokens):
            said = start = end = 0
            for token in tokens:
                if token in stops:
                    self.finish = "stop"
                    break
                self.ids.append(token)
                # Decoded from `start`, not from `end` (where the unsaid begins): some tokenizers write the
                # first token of a text in another way.
                text = self._text(start)
                if len(text) > said and not text.endswith(HALF_CHARACTER):
                    yield text[said:]
                    start, end = end, len(self.ids)
                    said = len(self._text(start))
            else:
                self.finish = "length"
            if rest := self._text(start)[said:]:
                yield rest

    def _text(self, start: int) -> str:
        text = self._tokenizer.decode(self.ids[start:], skip_special_tokens=True)
        assert isinstance(text, str)
        return text


class Generator:
    """A model and its tokenizer that answer conversations, one at a time.

    A model in training may be given: while an answer is made it is in evaluation mode, and after it as it was
    (its attention must know caches: see `engine.kernels`). Messages are mappings with `role` and `content`,
    as the tokenizer's chat template reads them; without a template, the last user message is the prompt.
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def open(cls, path: str, device: str = "auto", dtype: Dtype | None = None) -> "Generator":
        """A generator from a run, checkpoint, adapter or model folder, a hub id or `builtin:tiny`.

        Raises:
            RunError, ModelError: what is named is not there, not whole, or has no final weights yet.
        """
        return cls(*load(path, device, dtype))

    @property
    def stops(self) -> frozenset[int]:
        """The tokens that end an answer: those of the generation config, and the tokenizer's own end."""
        ends = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        listed = ends if isinstance(ends, list) else [ends]
        return frozenset(end for end in (*listed, self.tokenizer.eos_token_id) if end is not None)

    @property
    def context_tokens(self) -> int | None:
        """The longest sequence the model was made for, without virtual tokens; None where its config does not say."""
        tokens = rope.context_of(self.model.config)
        return None if tokens is None else tokens - num_virtual_tokens(self.model)

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], max_new_tokens: int, tools: Sequence[Any] | None = None
    ) -> Prompt:
        """A conversation as ids, without its oldest exchanges where they have no room; system turns stay.

        Room is kept for `max_new_tokens`, at most half of the context; a decoder beside an encoder has its own.

        Raises:
            TemplateError: the chat template refuses the conversation.
            ModelError: there is nothing to answer, or the last turn alone is too long.
        """
        write = source_ids if encodes(self.model) else prompt_ids
        kept, ids = list(messages), write(self.tokenizer, messages, tools)
        if self.context_tokens is not None:
            answer = 0 if encodes(self.model) else min(max_new_tokens, self.context_tokens // 2)
            room = self.context_tokens - answer
            while len(ids) > room:
                kept = _without_oldest(kept)
                if not kept:
                    raise ModelError(
                        f"the last message makes a prompt of {len(ids)} tokens, and the model's context of "
                        f"{self.context_tokens} has room for {room} before an answer: shorten it"
                    )
                ids = write(self.tokenizer, kept, tools)
        if not ids:
            raise ModelError("there is nothing to answer: the prompt is empty")
        return Prompt(tuple(ids), len(messages) - len(kept))

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        tools: Sequence[Any] | None = None,
    ) -> Answer:
        """The answer to a conversation, in pieces of text as they are made.

        `temperature` 0 takes the likeliest token; otherwise `seed` decides what is drawn (None: another each
        time) among the likeliest tokens that hold `top_p` of the probability.

        Raises:
            RecipeError: an option is out of bounds.
            TemplateError, ModelError: see `prompt`.
        """
        _check(max_new_tokens, temperature, top_p)
        prompt = self.prompt(messages, max_new_tokens, tools)
        limit = max_new_tokens
        if self.context_tokens is not None:
            limit = min(limit, self.context_tokens - (1 if encodes(self.model) else len(prompt.ids)))
        tokens = continue_ids(self.model, prompt.ids, limit, temperature, top_p, seed)
        return Answer(prompt, tokens, self.stops, self.tokenizer)

    def complete(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The whole answer as text; the options are those of `stream`."""
        answer = self._finished(messages, options)
        return "".join(answer)

    def complete_ids(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """The whole answer as tokens, without the one that stopped it; the options are those of `stream`."""
        answer = self._finished(messages, options)
        for _ in answer:
            pass
        return answer.ids

    def _finished(self, messages: Sequence[Mapping[str, Any]], options: dict[str, Any]) -> Answer:
        answer = self.stream(messages, **options)
        if answer.prompt.dropped_turns:
            log.warning(
                "the conversation is longer than the model's %d tokens: its oldest %d turns were left out",
                self.context_tokens,
                answer.prompt.dropped_turns,
            )
        return answer


def _check(max_new_tokens: int, temperature: float, top_p: float) -> None:
    if max_new_tokens < 1:
        raise RecipeError(f"max_new_tokens must be at least 1 (it was {max_new_tokens})")
    if temperature < 0:
        raise RecipeError(f"temperature must be 0 (the likeliest token) or more (it was {temperature})")
    if not 0 < top_p <= 1:
        raise RecipeError(f"top_p must be above 0 and at most 1 (it was {top_p})")


def _without_oldest(messages: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A conversation without its oldest exchange, so from a user's turn on; [] when none is left."""
    turns = [place for place, turn in enumerate(messages) if turn["role"] not in ("system", "developer")]
    begins = [place for place in turns[1:] if messages[place]["role"] == "user"]
    if not begins:
        return []
    return [turn for place, turn in enumerate(messages) if place not in turns or place >= begins[0]]


def continue_ids(
    model: "PreTrainedModel",
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Drawn:
    """The tokens that a model writes after a prompt, `max_new_tokens` of them if the reader does not stop."""
    generator = torch.Generator(model.device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    step, cache = list(prompt_ids), None
    with answering(model):
        encoded = encode(model, prompt_ids) if encodes(model) else None
        if encoded is not None:
            step = [start_token(model)]
        for _ in range(max_new_tokens):
            logits, cache = _next(model, step, cache, encoded)
            token = _pick(logits, temperature, top_p, generator)
            yield token
            step = [token]


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


@torch.no_grad()
def _next(model: "PreTrainedModel", step: Sequence[int], cache: Any, encoded: Any) -> tuple[torch.Tensor, Any]:
    """The logits [V] after a step of tokens, and the cache that holds all before; `encoded` is what an encoder read."""
    only_last = {"logits_to_keep": 1} if "logits_to_keep" in forward_options(model) else {}
    ids = torch.tensor([step], device=model.device)  # [1, P]
    given = {"input_ids": ids} if encoded is None else {"encoder_outputs": encoded, "decoder_input_ids": ids}
    told: Any = model if cache is None else base_of(model)  # virtual tokens, once put before a prompt, are in the cache
    output: Any = told(**given, past_key_values=cache, use_cache=True, **only_last)
    return output.logits[0, -1].float(), output.past_key_values


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


def _pick(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token from logits [V]: the likeliest, or one drawn from the nucleus (arXiv 1904.09751)."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / temperature, dim=-1)
    likeliest, order = probabilities.sort(descending=True)
    outside = order[likeliest.cumsum(0) - likeliest >= top_p]  # those before it already hold top_p
    probabilities[outside] = 0
    return int(torch.multinomial(probabilities, 1, generator=generator))


@contextlib.contextmanager
def answering(model: "PreTrainedModel") -> Iterator[None]:
    """A model in evaluation mode; after it, each of its parts as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
