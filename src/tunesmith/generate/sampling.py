"""How the next token is drawn from what a model says of it.

Letters: B answers that are made together, V vocabulary, K the likeliest tokens that are looked at.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tunesmith.errors import RunError
from tunesmith.generate.asked import Sampling

LIKELIEST = 1024  # tokens that are sorted first: nearly always they hold all of `top_p`


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer, and what the model said of it before anything was done to its logits."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens and their log-probabilities, where asked for


class Unheld(RunError):
    """An answer cannot be held to its form, or not any further: it is more than a guide can follow."""


class Constraint(Protocol):
    """What one answer must be: allows the tokens with which it can still become that."""

    is_whole: bool  # nothing may follow what is said
    problem: str | None  # why it cannot be kept to any further

    def allow(self, logits: torch.Tensor) -> None:
        """Set the logits [V] of all other tokens to -inf, in place."""

    def accept(self, token: int) -> None:
        """Go on from a token of the answer."""


class Grammar(Protocol):
    """What answers must be."""

    def begin(self) -> Constraint:
        """What one of them must be, from its first token on."""


class Drawing:
    """What the drawing of one answer keeps from token to token."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int], grammar: Grammar | None = None) -> None:
        self.sampling = sampling
        self.constraint = None if grammar is None else grammar.begin()
        self.random = random.Random(sampling.seed)
        self._prompt = frozenset(prompt) if sampling.repetition_penalty != 1 else frozenset()
        self._said: Counter[int] = Counter()
        penalties = sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty - 1
        self._penalised = any(penalties)
        self.changes = self._penalised or bool(sampling.logit_bias) or grammar is not None

    def change(self, logits: torch.Tensor) -> None:
        """Put the penalties, the bias and the constraint on logits [V], in place."""
        how = self.sampling
        if how.repetition_penalty != 1 and (seen := [*(self._prompt | self._said.keys())]):
            found = logits[seen]
            logits[seen] = torch.where(found > 0, found / how.repetition_penalty, found * how.repetition_penalty)
        if self._said and (how.presence_penalty or how.frequency_penalty):
            taken = [how.presence_penalty + how.frequency_penalty * times for times in self._said.values()]
            logits[[*self._said]] -= torch.tensor(taken, device=logits.device)
        for token, bias in how.logit_bias.items():
            logits[token] += bias
        if self.constraint is not None:
            self.constraint.allow(logits)

    def accept(self, token: int) -> None:
        """Go on from a token of the answer."""
        if self._penalised:
            self._said[token] += 1
        if self.constraint is not None:
            self.constraint.accept(token)


def draw(logits: torch.Tensor, drawings: Sequence[Drawing]) -> list[Token]:
    """The next token of each answer from its logits [B, V] in float32; it depends on no other answer."""
    given = logits
    if any(one.changes for one in drawings):
        given = logits.clone()
        for row, one in zip(given, drawings, strict=True):
            if one.changes:
                one.change(row)
    tokens: list[int] = given.argmax(-1).tolist()
    for choose in (_of_all, _of_likeliest):
        rows = [place for place, one in enumerate(drawings) if _chooser(one.sampling) is choose]
        if rows:
            picked = choose(given[rows], [drawings[place] for place in rows])
            for place, token in zip(rows, picked, strict=True):
                tokens[place] = token
    for one, token in zip(drawings, tokens, strict=True):
        one.accept(token)
    return _told(logits, drawings, tokens)


def _chooser(how: Sampling) -> Any:
    if how.temperature == 0:
        return None
    return _of_all if how.top_p == 1 and not how.top_k and not how.min_p else _of_likeliest


def _of_all(logits: torch.Tensor, drawings: Sequence[Drawing]) -> list[int]:
    """A token of each row, by its probability."""
    return _at_random(_probabilities(logits, drawings), drawings)


def _of_likeliest(logits: torch.Tensor, drawings: Sequence[Drawing]) -> list[int]:
    """A token of each row from its likeliest ones: first `top_k` of them, then `top_p` of these, then `min_p`."""
    probabilities = _probabilities(logits, drawings)
    vocabulary = probabilities.shape[-1]
    top_p = _column([one.sampling.top_p for one in drawings], probabilities)
    top_k = _column([one.sampling.top_k or vocabulary for one in drawings], probabilities)
    min_p = _column([one.sampling.min_p for one in drawings], probabilities)
    for looked_at in dict.fromkeys((min(LIKELIEST, vocabulary), vocabulary)):
        sorted_, order = probabilities.topk(looked_at)  # [B, K]
        rank = torch.arange(looked_at, device=logits.device)
        whole = torch.where(top_k >= vocabulary, 1.0, (sorted_ * (rank < top_k)).sum(-1, keepdim=True))
        before = sorted_.cumsum(-1) - sorted_
        kept = (rank < top_k) & (before < top_p * whole) & (sorted_ >= min_p * sorted_[:, :1])
        if looked_at == vocabulary or not bool(kept[:, -1].any()):  # else more of them may be kept than were looked at
            break
    places = _at_random(sorted_ * kept, drawings)
    return order.gather(-1, torch.tensor(places, device=order.device)[:, None])[:, 0].tolist()


def _probabilities(logits: torch.Tensor, drawings: Sequence[Drawing]) -> torch.Tensor:
    temperatures = _column([one.sampling.temperature for one in drawings], logits)
    return torch.softmax(logits.double() / temperatures.double(), dim=-1)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _at_random(weights: torch.Tensor, drawings: Sequence[Drawing]) -> list[int]:
    """A place of each row of weights [B, K], as often as its weight is of the row's; each by its own random number."""
    sums = weights.cumsum(-1)
    drawn = _column([one.random.random() for one in drawings], sums) * sums[:, -1:]
    places = torch.searchsorted(sums, drawn, right=True)[:, 0]
    last = (weights > 0).long().cumsum(-1).argmax(-1)  # rounding must not lead past the last place that has a weight
    return torch.minimum(places, last).tolist()


def _told(logits: torch.Tensor, drawings: Sequence[Drawing], tokens: Sequence[int]) -> list[Token]:
    asked = [place for place, one in enumerate(drawings) if one.sampling.logprobs is not None]
    told = [Token(token) for token in tokens]
    if asked:
        logps = torch.log_softmax(logits[asked], dim=-1)  # [asked, V]
        most = max(drawings[place].sampling.logprobs or 0 for place in asked)
        values, ids = (part.tolist() for part in logps.topk(most)) if most else ([()] * len(asked),) * 2
        for row, place in enumerate(asked):
            many = drawings[place].sampling.logprobs or 0
            top = tuple(zip(ids[row][:many], values[row][:many], strict=True))
            told[place] = Token(tokens[place], logps[row, tokens[place]].item(), top)
    return told
