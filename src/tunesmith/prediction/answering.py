"""Who answers the rows of a data set: a model in this process, or one behind an address."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tunesmith.generate.addressed import Addressed
from tunesmith.generate.alone import encodes, logits_of
from tunesmith.generate.asked import Sampling
from tunesmith.generate.by_vllm import ByVllm
from tunesmith.generate.endpoint import Server, is_address
from tunesmith.generate.engine import Generator, Reply
from tunesmith.generate.engines import Vllm
from tunesmith.prediction.rows import Asked
from tunesmith.recipe import Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Job = tuple[Asked, Sampling]


@dataclass(frozen=True, slots=True)
class Answered:
    """What a row was asked as text, and the answer."""

    prompt: str
    reply: Reply
    dropped_turns: int
    token_accuracy: float | None = None  # None: not measured


class Answering(ABC):
    """A model that answers rows. Without a tokenizer, what rows know is compared as text alone."""

    tokenizer: "PreTrainedTokenizerBase | None"
    name: str = ""  # what a server calls its model
    notes: Sequence[str] = ()  # what is to be said of how it computes

    @abstractmethod
    def some(self, jobs: Sequence[Job], token_accuracy: bool) -> Iterator[Answered]:
        """Some rows answered together, in their order. Raises ModelError, TemplateError."""


class Here(Answering):
    """A model in this process."""

    def __init__(self, generator: Generator) -> None:
        self.generator, self.tokenizer = generator, generator.tokenizer

    def some(self, jobs: Sequence[Job], token_accuracy: bool) -> Iterator[Answered]:
        """As `Answering` says it."""
        own = self.generator
        prompts = [own.prompt(one.messages, how.max_new_tokens, one.tools) for one, how in jobs]
        replies = own.answers([own.request(prompt, how) for prompt, (_, how) in zip(prompts, jobs, strict=True)])
        for (one, _), prompt, reply in zip(jobs, prompts, replies, strict=True):
            before, share = 1 if encodes(own.model) else len(prompt.ids), None
            if token_accuracy and (label := _label(one, before, own.context_tokens)):
                likeliest = logits_of(own.model, prompt.ids, label).argmax(-1).tolist()
                hits = [pair[0] == pair[1] for pair in zip(likeliest, label, strict=True)]
                share = sum(hits) / len(hits)
            text = str(own.tokenizer.decode(list(prompt.ids)))
            yield Answered(text, reply, prompt.dropped_turns, share)


class There(Answering):
    """A model behind an address: asked by tokens where its tokenizer is here, else by messages."""

    def __init__(self, addressed: Addressed) -> None:
        self.addressed, self.tokenizer, self.name = addressed, addressed.tokenizer, addressed.name

    def some(self, jobs: Sequence[Job], token_accuracy: bool) -> Iterator[Answered]:
        """As `Answering` says it. Raises ModelError where the server lacks what is asked."""
        ask = self._said if self.tokenizer is None else self._by_tokens
        return self.addressed.in_order([partial(ask, one, how, token_accuracy) for one, how in jobs])

    def _said(self, one: Asked, how: Sampling, token_accuracy: bool) -> Answered:
        reply, dropped = self.addressed.answer(one.messages, one.tools, how)
        text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in one.messages[dropped:])
        return Answered(text, reply, dropped)

    def _by_tokens(self, one: Asked, how: Sampling, token_accuracy: bool) -> Answered:
        assert self.tokenizer is not None
        prompt = self.addressed.prompt(one.messages, one.tools, how.max_new_tokens)
        reply, share = self.addressed.complete(prompt.ids, how), None
        if token_accuracy and (label := _label(one, len(prompt.ids), self.addressed.context_tokens)):
            hits = self.addressed.likeliest(prompt.ids, label)
            share = sum(hits) / len(hits)
        return Answered(str(self.tokenizer.decode(list(prompt.ids))), reply, prompt.dropped_turns, share)


class InVllm(Answering):
    """A model in this process that vLLM answers with."""

    def __init__(self, model: ByVllm) -> None:
        self.model, self.tokenizer, self.notes = model, model.tokenizer, model.notes

    def some(self, jobs: Sequence[Job], token_accuracy: bool) -> Iterator[Answered]:
        """As `Answering` says it. Raises ModelError also where vLLM refuses what is asked."""
        prompts = [self.model.prompt(one.messages, one.tools, how.max_new_tokens) for one, how in jobs]
        replies = self.model.answers([prompt.ids for prompt in prompts], [how for _, how in jobs])
        pairs, context = zip(prompts, (one for one, _ in jobs), strict=True), self.model.context_tokens
        labels = [_label(one, len(prompt.ids), context) if token_accuracy else () for prompt, one in pairs]
        labelled = [([*prompt.ids, *ids], len(ids)) for prompt, ids in zip(prompts, labels, strict=True) if ids]
        scores = self.model.scores(labelled)
        for prompt, reply, ids in zip(prompts, replies, labels, strict=True):
            share = sum(hit for _, hit in next(scores)) / len(ids) if ids else None
            text = str(self.model.tokenizer.decode(list(prompt.ids)))
            yield Answered(text, reply, prompt.dropped_turns, share)


def _label(one: Asked, before: int, context: int | None) -> Sequence[int]:
    """The tokens of a label that has room behind so many others; one that has none is not measured."""
    return one.label_ids if context is None or before + len(one.label_ids) <= context else ()


def find(path: str, device: str, dtype: Dtype | None, server: Server, vllm: Vllm | None) -> Answering:
    """Who answers: the model of a path, hub id or address. Raises RunError, ModelError, RecipeError, MissingExtra.

    `vllm` is how vLLM is started for a model of this process; None: our own engine answers.
    """
    if is_address(path):
        return There(Addressed.open(path, server))
    if vllm is not None:
        return InVllm(ByVllm.open(path, dtype, vllm))
    return Here(Generator.open(path, device, dtype))
