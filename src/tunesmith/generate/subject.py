"""A model under examination: how likely it finds tokens, and what it answers. Every task of an evaluation asks this.

Log-probabilities are made as in training: sequences lie in packed rows, what two of them begin with in common stands
once, and only asked positions meet the head.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunesmith.data.batch import join
from tunesmith.data.prompt import prompt_ids
from tunesmith.engine import kernels, rope
from tunesmith.engine.model import base_of
from tunesmith.engine.scores import Scorer
from tunesmith.errors import ModelError
from tunesmith.generate.alone import logits_of
from tunesmith.generate.asked import Sampling
from tunesmith.generate.batch import Request
from tunesmith.generate.engine import Generator, Reply
from tunesmith.generate.load import load
from tunesmith.recipe import Dtype
from tunesmith.recipe_rope import RopeScaling
from tunesmith.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROW_TOKENS = 4096  # of sequences that are read in one pass, unless one alone is longer
SHARED_FROM = 16  # tokens of a common beginning, from which it is quicker to have it once
Sequence_ = tuple[Sequence[int], int]  # tokens, and how many of the last ones are asked for


class Subject(ABC):
    """A causal model with its tokenizer: in this process (`Loaded`), or behind an address (`subject_at.AtAddress`)."""

    tokenizer: "PreTrainedTokenizerBase"

    @staticmethod
    def open(
        path: str, device: str = "auto", dtype: Dtype | None = None, rope_scaling: RopeScaling | None = None
    ) -> "Loaded":
        """The model of a run, checkpoint, adapter or model folder, or hub id; `rope_scaling` stretches its positions.

        Raises:
            RunError, ModelError: it cannot be loaded, or has an encoder or a head for values.
            RecipeError: the scaling does not go with it.
        """
        model, tokenizer = load(path, device, dtype, rope_scaling=rope_scaling)
        if base_of(model).config.is_encoder_decoder:
            raise ModelError(f"{path} has an encoder and a decoder, and evaluation reads models of one: choose another")
        return Loaded(model, tokenizer, kernels.choose(model))

    @property
    @abstractmethod
    def context_tokens(self) -> int | None:
        """The longest sequence the model was made for; None where its config does not say."""

    @property
    @abstractmethod
    def most_tokens(self) -> int | None:
        """The longest sequence that it can be asked of; None where that is not known."""

    @abstractmethod
    def likeliest(self, tokens: Sequence[int], number: int) -> list[bool]:
        """Whether each of so many last tokens is the likeliest one behind those before it."""

    @property
    def notes(self) -> Sequence[str]:
        """What is to be said of how it computes."""
        return ()

    def logps(self, sequences: Sequence[Sequence_]) -> list[torch.Tensor]:
        """For each of some (tokens, n) the log-probabilities of its n last tokens: [n] float32 each, on the CPU.

        A first token, which nothing stands before, cannot be asked for. What a sequence begins with as the one before
        it does is computed once in a row: let those that begin alike stand side by side.
        """
        return [one for row in self.logps_by_row(sequences) for one in row]

    @abstractmethod
    def logps_by_row(self, sequences: Sequence[Sequence_]) -> Iterator[list[torch.Tensor]]:
        """The same as it is made, a row at a time."""

    @abstractmethod
    def replies(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[str] = ()
    ) -> Iterator[Reply]:
        """The likeliest answer to each of some prompts, in their order, also beyond the model's context.

        An answer ends with a token that ends the model's turns, or before a `stop` text.
        """

    def prompt(self, question: str, begun: str = "") -> list[int]:
        """A question as tokens; `begun` stands behind it where there is no chat template, so that the text goes on."""
        said = question if self.tokenizer.chat_template else question + begun
        return prompt_ids(self.tokenizer, [{"role": "user", "content": said}])

    def continued(self, text: str, continuations: Sequence[str]) -> list[Sequence_]:
        """A text with each of some continuations, as (tokens, n): the whole as tokens, of which n are behind it.

        White space at the end of the text counts as the continuation's.
        """
        before = text.rstrip() or text
        continuations = [text[len(before) :] + one for one in continuations]
        encoded: Any = self.tokenizer([before, *(before + one for one in continuations)], verbose=False)
        first, *whole = encoded["input_ids"]
        return [(ids, max(1, len(ids) - len(first))) for ids in whole]

    def replied(self, turns: Sequence[tuple[str, str]], question: str, replies: Sequence[str]) -> list[Sequence_]:
        """Each reply to a question as (tokens, n) behind earlier turns, as the chat template writes them.

        Raises:
            ModelError: the tokenizer has no chat template.
            TemplateError: it refuses the conversation.
        """
        before = self.conversation(turns, question)
        each = [self.ids(reply) for reply in replies]
        return [([*before, *reply], len(reply)) for reply in each]

    def conversation(self, turns: Sequence[tuple[str, str]], question: str) -> list[int]:
        """A question behind earlier turns, and the header of its answer, as the chat template writes them.

        Raises:
            ModelError: the tokenizer has no chat template.
            TemplateError: it refuses the conversation.
        """
        if not self.tokenizer.chat_template:
            raise ModelError(f"{self.tokenizer.name_or_path} has no chat template: leave chat out, or say chat=false")
        said = [(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
        messages = [{"role": role, "content": text} for role, text in (*said, ("user", question))]
        return prompt_ids(self.tokenizer, messages)

    def answer(self, question: str, begun: str, max_new_tokens: int) -> str:
        """The model's likeliest answer to what `prompt` makes of a question, as text, also beyond its context."""
        (reply,) = self.replies([self.prompt(question, begun)], max_new_tokens)
        return reply.text

    def ids(self, text: str) -> list[int]:
        """A text's tokens, without any that the tokenizer puts around it."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @property
    def begin(self) -> tuple[int, ...]:
        """The tokens that the tokenizer puts before a text."""
        bos = self.tokenizer.bos_token_id
        return (bos,) if bos is not None and self.tokenizer("a")["input_ids"][0] == bos else ()


@dataclass(frozen=True)
class Loaded(Subject):
    """A model of this process with its tokenizer and its kernels."""

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    kernels: kernels.Kernels

    @property
    def notes(self) -> Sequence[str]:
        """As `Subject` says it."""
        return self.kernels.notes

    @property
    def context_tokens(self) -> int | None:
        """As `Subject` says it."""
        return rope.context_of(base_of(self.model).config)

    def logps_by_row(self, sequences: Sequence[Sequence_]) -> Iterator[list[torch.Tensor]]:
        """As `Subject` says it."""
        for row in _rows(sequences, self.kernels.shares):
            yield self._row(row)

    @property
    def most_tokens(self) -> int | None:
        """As `Subject` says it: one more than the context, where a place is no row of a table: nothing is asked of it.

        Such a last token is looked at by none before it, and is asked for itself.
        """
        known = self.context_tokens
        return None if known is None else known + bool(rope.turns(base_of(self.model).config))

    def likeliest(self, tokens: Sequence[int], number: int) -> list[bool]:
        """As `Subject` says it."""
        last = list(tokens[-number:])
        with self.kernels.generating(self.model):
            found = logits_of(self.model, tokens[:-number], last).argmax(-1).tolist()
        return [one == other for one, other in zip(found, last, strict=True)]

    @torch.no_grad()
    def _row(self, row: Sequence["_Laid"]) -> list[torch.Tensor]:
        assert isinstance(self.kernels.scorer, Scorer), "it says words"
        joined = join([_as_row(row)])
        device = base_of(self.model).device
        moved: dict[str, Any] = {
            name: one.to(device) if isinstance(one, torch.Tensor) else one for name, one in joined.items()
        }
        logps = self.kernels.scorer(self.model, Batch(**moved)).logps[0]  # [T]
        asked = logps[moved["asked"]].cpu()
        return list(asked.split([one.asked for one in row]))

    def replies(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[str] = ()
    ) -> Iterator[Reply]:
        """As `Subject` says it."""
        sampling = Sampling(max_new_tokens=max_new_tokens, stop=tuple(stop))
        requests = [Request(tuple(prompt), sampling) for prompt in prompts]
        return Generator(self.model, self.tokenizer).answers(requests, partial(self.kernels.generating, self.model))


@dataclass(frozen=True, slots=True)
class _Laid:
    """A sequence of a row: its tokens, how many are asked, and how many of the one before it it begins with."""

    tokens: Sequence[int]
    asked: int
    shared: int

    @property
    def own(self) -> int:
        """The tokens that it takes in its row."""
        return len(self.tokens) - self.shared


def _rows(sequences: Sequence[Sequence_], shares: bool) -> Iterator[list[_Laid]]:
    """The sequences in order, as many in a row as fit."""
    row: list[_Laid] = []
    room = ROW_TOKENS
    for tokens, asked in sequences:
        assert 0 < asked < len(tokens), "something is asked, and something stands before it"
        laid = _Laid(tokens, asked, _common(row[-1].tokens, tokens, asked) if row and shares else 0)
        if row and laid.own > room:
            yield row
            row, room, laid = [], ROW_TOKENS, _Laid(tokens, asked, 0)
        row.append(laid)
        room -= laid.own
    if row:
        yield row


def _common(before: Sequence[int], tokens: Sequence[int], asked: int) -> int:
    """How many tokens two sequences begin with in common, 0 where it does not pay.

    The token before the first asked one is never among them: another one is asked there.
    """
    most = len(tokens) - asked - 1
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(before, tokens[: max(most, 0)], strict=False))
    found = sum(1 for _ in equal)
    return found if found >= SHARED_FROM else 0


def _as_row(row: Sequence[_Laid]) -> dict[str, np.ndarray]:
    """Some sequences as a packed row, of which the last tokens of each are asked for."""
    ids = [np.asarray(one.tokens[one.shared :], np.int64) for one in row]
    weights = [np.zeros(len(own), np.float32) for own in ids]
    for weight, one in zip(weights, row, strict=True):
        weight[-one.asked - 1 : -1] = 1
    return {
        "input_ids": np.concatenate(ids),
        "target": np.concatenate([np.append(own[1:], 0) for own in ids]),
        "weight": np.concatenate(weights),
        "lengths": np.asarray([len(own) for own in ids]),
        "prefix": np.asarray([(max(at - 1, 0), one.shared) for at, one in enumerate(row)], np.int64),
        "label": np.full(len(row), np.nan, np.float32),
        "branch": np.zeros(len(row), np.int64),
    }
