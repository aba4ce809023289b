"""A model that answers conversations: prompts within its context, pieces of text, whole answers, many at a time.

transformers' `generate` is not asked, because a reader of an answer may stop at any token, and because sampling draws
from random numbers of its own: an answer in the middle of a run leaves the run's alone. On greedy tokens the two agree
(tests/unit/generate).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunesmith.data.prompt import prompt_ids
from tunesmith.data.sides import source_ids
from tunesmith.engine import rope
from tunesmith.engine.model import num_virtual_tokens
from tunesmith.errors import ModelError
from tunesmith.generate import adapters
from tunesmith.generate.alone import Alone, answering, encodes
from tunesmith.generate.asked import Sampling
from tunesmith.generate.batch import Batch, Finish, Request, Stream
from tunesmith.generate.choose import decoder_for
from tunesmith.generate.constraint import Forms
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.ends import Written, ends_of
from tunesmith.generate.load import load
from tunesmith.recipe import Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the model is given it."""

    ids: tuple[int, ...]
    dropped_turns: int  # the oldest ones, which the model's context had no room for


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer as text, what ended it (`stop`, or `length` where it was given no more tokens), and its tokens."""

    text: str
    finish: str
    num_tokens: int = 0
    logprobs: tuple[float, ...] = ()  # of its tokens, where they are asked for


class Answer(Iterator[str]):
    """An answer that is made as it is read: iterating gives pieces of text, never a part of a character.

    The fields grow with it: `ids` are its tokens so far, without the stop token; `finish` is None until the
    end, then `stop` (the model ended its turn) or `length` (no room, or no more tokens allowed).
    """

    def __init__(self, prompt: Prompt, stream: Stream) -> None:
        self.prompt = prompt
        self.ids: list[int] = []
        self.finish: Finish | None = None
        self._stream = stream

    def __next__(self) -> str:
        for piece in self._stream:
            self.ids += [token.id for token in piece.tokens]
            self.finish = piece.finish
            if piece.text:
                return piece.text
        raise StopIteration

    def close(self) -> None:
        """Make no more of it."""
        self._stream.close()


class Generator:
    """A model and its tokenizer that answer conversations.

    A model in training may be given: while a token is made it is in evaluation mode, and after it as it was
    (its attention must know caches: see `engine.kernels`). Messages are mappings with `role` and `content`,
    as the tokenizer's chat template reads them; without a template, the last user message is the prompt.
    """

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", decoder: Decoder | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._decoder = decoder

    @classmethod
    def open(
        cls,
        path: str,
        device: str = "auto",
        dtype: Dtype | None = None,
        adapters: Mapping[str, str] | None = None,
    ) -> "Generator":
        """A generator from a run, checkpoint, adapter or model folder, a hub id or `builtin:tiny`.

        `adapters` are folders or runs of LoRA adapters, by the names that requests have them by.

        Raises:
            RunError, ModelError: what is named is not there, not whole, or has no final weights yet.
        """
        return cls(*load(path, device, dtype, adapters=adapters))

    @property
    def decoder(self) -> Decoder:
        """What goes on with answers, chosen by the first one."""
        if self._decoder is None:
            self._decoder = decoder_for(self.model)
        return self._decoder

    @property
    def stops(self) -> frozenset[int]:
        """The tokens that end an answer: those of the generation config, and the tokenizer's own end."""
        return ends_of(self.model.generation_config, self.tokenizer.eos_token_id)

    def written(self, adapter: str | None = None) -> Written:
        """How the model writes its answers, or one of the adapters that it was opened with."""
        found = adapters.of_model(self.model)
        return Written(self.tokenizer, self.stops) if adapter is None or found is None else found.written[adapter]

    @cached_property
    def forms(self) -> Forms:
        """What answers can be held to."""
        return Forms(self.tokenizer, self.stops)

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
        return fitted(self.tokenizer, messages, tools, max_new_tokens, self.context_tokens, encodes(self.model))

    def request(self, prompt: Prompt, sampling: Sampling, **options: Any) -> Request:
        """What is asked of a batch for a prompt: no more tokens than the context has room for.

        Raises:
            RecipeError, ModelError, MissingExtra: answers cannot be held to what `sampling` says that they must be.
        """
        limit = sampling.max_new_tokens
        if self.context_tokens is not None:
            limit = min(limit, self.context_tokens - (1 if encodes(self.model) else len(prompt.ids)))
        options.setdefault("grammar", self.forms.of_sampling(sampling))
        return Request(prompt.ids, sampling.model_copy(update={"max_new_tokens": limit}), **options)

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        special: bool = False,
        **options: Any,
    ) -> Answer:
        """The answer to a conversation, in pieces of text as they are made; `options` are those of `Sampling`.

        `special` says that special tokens are text too.

        Raises:
            RecipeError: an option is out of bounds.
            TemplateError, ModelError: see `prompt`.
        """
        sampling = Sampling(**options)
        prompt = self.prompt(messages, sampling.max_new_tokens, tools)
        batch = self.batch()

        def drive() -> None:
            with answering(self.model):
                batch.step()

        return Answer(prompt, batch.add(self.request(prompt, sampling, special=special), drive))

    def batch(self) -> Batch:
        """A batch of no answers yet."""
        return Batch(
            self.decoder, self.tokenizer, self.stops, {name: self.written(name) for name in self.decoder.adapters}
        )

    def answers(
        self, requests: Iterable[Request], within: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> Iterator[Reply]:
        """Whole answers to many requests, in their order; they are made together.

        `within` is what the model must be in while they are; between two of them it is not.

        Raises:
            ModelError, RunError: as `Batch.add`.
        """
        with within():
            batch = self.batch()
        streams = [batch.add(request) for request in requests]
        for stream in streams:
            with within():
                reply = whole(stream)
            yield reply

    def sampled(
        self, messages: Sequence[Mapping[str, Any]], each: Sequence[Sampling], tools: Sequence[Any] = ()
    ) -> Iterator[Reply]:
        """Answers to one conversation, each drawn in its own way. Raises as `prompt`."""
        prompt = self.prompt(messages, max(one.max_new_tokens for one in each), tools)
        self.note_dropped(prompt)
        return self.answers(self.request(prompt, sampling) for sampling in each)

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
        self.note_dropped(answer.prompt)
        return answer

    def note_dropped(self, prompt: Prompt) -> None:
        """Log a warning where a prompt lacks turns that its context had no room for."""
        if prompt.dropped_turns:
            log.warning(
                "the conversation is longer than the model's %d tokens: its oldest %d turns were left out",
                self.context_tokens,
                prompt.dropped_turns,
            )


def whole(stream: Stream) -> Reply:
    """An answer to its end. Raises RunError where it has none."""
    pieces = list(stream)
    tokens = [token for piece in pieces for token in piece.tokens if token.logprob is not None]
    logprobs = tuple(float(token.logprob or 0) for token in tokens)
    return Reply("".join(piece.text for piece in pieces), str(stream.finish), stream.num_tokens, logprobs)


def fitted(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    max_new_tokens: int,
    context: int | None,
    encoded: bool = False,
) -> Prompt:
    """A conversation as ids: see `Generator.prompt`. `encoded` says that an encoder reads it. Raises the same."""
    write = source_ids if encoded else prompt_ids
    kept, ids = list(messages), write(tokenizer, messages, tools)
    if context is not None:
        room = context - (0 if encoded else min(max_new_tokens, context // 2))
        while len(ids) > room:
            kept = without_oldest(kept)
            if not kept:
                raise ModelError(
                    f"the last message makes a prompt of {len(ids)} tokens, and the model's context of "
                    f"{context} has room for {room} before an answer: shorten it"
                )
            ids = write(tokenizer, kept, tools)
    if not ids:
        raise ModelError("there is nothing to answer: the prompt is empty")
    return Prompt(tuple(ids), len(messages) - len(kept))


def without_oldest(messages: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A conversation without its oldest exchange, so from a user's turn on; [] when none is left."""
    turns = [place for place, turn in enumerate(messages) if turn["role"] not in ("system", "developer")]
    begins = [place for place in turns[1:] if messages[place]["role"] == "user"]
    if not begins:
        return []
    return [turn for place, turn in enumerate(messages) if place not in turns or place >= begins[0]]


def greedy_ids(model: "PreTrainedModel", prompt: Sequence[int], max_new_tokens: int) -> tuple[int, ...]:
    """The likeliest tokens after a prompt, so many of them: nothing ends it."""
    decoder, tokens = Alone(model), list[int]()
    with answering(model):
        place = decoder.begin(prompt)
        tokens.append(int(decoder.read([place])[1][0].argmax()))
        while len(tokens) < max_new_tokens:
            tokens.append(int(decoder.step([place], tokens[-1:])[0].argmax()))
    return tuple(tokens)
