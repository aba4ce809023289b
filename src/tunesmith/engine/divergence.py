"""How far a student's words are from a teacher's, from what enters their heads: neither model's whole logits exist.

Some tokens' logits of both models exist at once, in blocks of the vocabulary. From the same logits the forward pass
makes the divergence and its gradient with respect to what enters the student's head, which the backward pass only
multiplies; for a head that is trained it makes them again.

A teacher says all its words, by what enters its head, or its likeliest words alone. Those stand each for itself, and
all other words together as one more, for both models: a divergence of two whole distributions, which is never more
than that of all words, and 0 only where the student gives each of these words what the teacher does. (Renormalising
the likeliest words instead teaches a student too much of them: arXiv 2503.16870.)

Letters: N tokens, n of them at once, D features that enter, V vocabulary, v words of a block, K likeliest words.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tunesmith.engine.elementwise import apart, shaped
from tunesmith.engine.head import Head, Means, Pairs, Sums, parts_of
from tunesmith.types import Divergence


@dataclass(frozen=True, eq=False)
class TopWords:
    """A teacher's likeliest words at some positions."""

    words: torch.Tensor  # [N, K] int64
    logps: torch.Tensor  # [N, K+1] float32 at the temperature: of each, and of all other words together

    def part(self, part: slice) -> "TopWords":
        """What it says at some of the positions."""
        return TopWords(self.words[part], self.logps[part])


@dataclass(frozen=True, eq=False)
class AllWords:
    """A teacher's words at some positions, by what enters its head."""

    head: Head
    inputs: Sequence[torch.Tensor]  # [N, D] each

    @classmethod
    def of(cls, pairs: Pairs, bias: torch.Tensor | None, means: Means, words: int, temperature: float) -> "AllWords":
        """The first words of a head, at a temperature."""
        pairs, bias = first_words(pairs, bias, words)
        cool = replace(means, shaping=means.shaping.cooled(temperature))
        return cls(Head([weight for _, weight in pairs], bias, cool), [x for x, _ in pairs])

    def part(self, part: slice) -> "AllWords":
        """What it says at some of the positions."""
        return AllWords(self.head, [x[part] for x in self.inputs])

    def top(self, k: int) -> TopWords:
        """Its k likeliest words."""
        parts = [self.part(part)._top(k) for part in parts_of(len(self.inputs[0]), tokens_at_once(self.head))]
        return TopWords(torch.cat([one.words for one in parts]), torch.cat([one.logps for one in parts]))

    def _top(self, k: int) -> TopWords:
        blocks = [self.head.logits(self.inputs, words) for words in self.head.blocks()]
        best = [logits.topk(min(k, logits.shape[1])) for logits in blocks]
        words = [one.indices + block.start for one, block in zip(best, self.head.blocks(), strict=True)]
        chosen = torch.cat([one.values for one in best], dim=1).topk(k).indices
        found = torch.cat(words, dim=1).gather(1, chosen)  # [n, K]
        return TopWords(found, _Apart.split(self.head, blocks, found).log_softmax(-1))


def first_words(pairs: Pairs, bias: torch.Tensor | None, words: int) -> tuple[Pairs, torch.Tensor | None]:
    """A head without the words that the other model's head lacks: rows that pad it to a round number."""
    return [(x, weight[:words]) for x, weight in pairs], None if bias is None else bias[:words]


def tokens_at_once(head: Head) -> int:
    """How many tokens' logits, a student's beside a teacher's, exist at once."""
    return max(64, head.means.kept // (2 * len(head.weights[0])))


def divergences(
    pairs: Pairs,  # inputs [N, D] and weights [V, D] of the student's head
    bias: torch.Tensor | None,  # [V]
    means: Means,
    told: AllWords | TopWords,
    how: Divergence,
) -> torch.Tensor:
    """How far the student's words are from the teacher's at each position: float32 [N]."""
    cool = replace(means, shaping=means.shaping.cooled(how.temperature))
    tensors = [tensor for pair in pairs for tensor in pair]
    if not torch.is_grad_enabled():
        tensors, bias = [tensor.detach() for tensor in tensors], None if bias is None else bias.detach()
    found: Any = _Divergences.apply(told, how, cool, bias, *tensors)
    return found


class _Chunk(ABC):
    """Some tokens' logits, and how far the student is from the teacher there."""

    value: torch.Tensor  # [n, 1]

    def __init__(self, head: Head, inputs: Sequence[torch.Tensor]) -> None:
        self.head, self.inputs = head, inputs
        self.blocks = [head.logits(inputs, words) for words in head.blocks()]

    @abstractmethod
    def spread(self, number: int, words: slice, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to a block of the student's unshaped logits [n, v]."""

    def pull(self, gradient: torch.Tensor, by: Sums) -> list[torch.Tensor]:
        """The gradients by each input [n, D]; those by weights and bias are added to `by`."""
        sums = [torch.zeros_like(x, dtype=torch.float32) for x in self.inputs]
        for number, words in enumerate(self.head.blocks()):
            spread = self.spread(number, words, gradient)
            for place, (x, weight) in enumerate(zip(self.inputs, self.head.weights, strict=True)):
                sums[place] += spread @ weight[words]
                by.add(place, words, spread, x)
            if by.bias is not None:
                by.bias[words] += spread.sum(0, dtype=torch.float32)
        return [one.to(x.dtype) for one, x in zip(sums, self.inputs, strict=True)]


class _Whole(_Chunk):
    """Every word against the teacher's."""

    def __init__(self, head: Head, inputs: Sequence[torch.Tensor], told: AllWords, how: Divergence) -> None:
        super().__init__(head, inputs)
        self.theirs = [told.head.logits(told.inputs, words) for words in head.blocks()]
        totals = _log_total(head, self.blocks), _log_total(told.head, self.theirs)
        self.terms = (totals, tuple(head.means.shaping), tuple(told.head.means.shaping), how.kind, how.weight)
        found = [
            head.means.ops.compare(own, other, *self.terms) for own, other in zip(self.blocks, self.theirs, strict=True)
        ]
        self.value = torch.stack([value for value, _ in found]).sum(0)
        self.slopes = torch.stack([slopes for _, slopes in found]).sum(0)

    def spread(self, number: int, words: slice, gradient: torch.Tensor) -> torch.Tensor:
        """From both models' logits."""
        return self.head.means.ops.compare_pull(
            self.blocks[number], self.theirs[number], *self.terms, self.slopes, gradient
        )


class _Apart(_Chunk):
    """The teacher's likeliest words each for itself, and all others together."""

    def __init__(self, head: Head, inputs: Sequence[torch.Tensor], told: TopWords, how: Divergence) -> None:
        super().__init__(head, inputs)
        self.words = told.words
        self.own = self.split(head, self.blocks, told.words)
        logps = self.own.log_softmax(-1)
        terms, slopes = apart(logps, told.logps, how.kind, how.weight)
        self.value = terms.sum(-1, keepdim=True)
        self.slopes = slopes - logps.exp() * slopes.sum(-1, keepdim=True)  # [n, K+1] by the logits, the rest's too

    @staticmethod
    def split(head: Head, blocks: Sequence[torch.Tensor], chosen: torch.Tensor) -> torch.Tensor:
        """The shaped logits of some words [n, K], and the log of the sum of exp(logit) of the others: [n, K+1]."""
        own = torch.zeros(chosen.shape, device=chosen.device)
        most = torch.full((len(chosen), 1), -torch.inf, device=chosen.device)
        total = torch.zeros_like(most)
        for words, logits in zip(head.blocks(), blocks, strict=True):
            place, inside = _places(chosen, words)
            found, _ = shaped(logits.gather(1, place.clamp(max=logits.shape[1] - 1)), *head.means.shaping)
            own = torch.where(place < logits.shape[1], found, own)
            most, total = head.means.ops.log_sum_but(logits, inside, most, total, *head.means.shaping)
        return torch.cat([own, most + total.log()], dim=1)

    def spread(self, number: int, words: slice, gradient: torch.Tensor) -> torch.Tensor:
        """At the likeliest words their own, at others their part of the rest's."""
        place, inside = _places(self.words, words)
        by_each = self.slopes * gradient
        own = by_each.new_zeros(len(place), inside.shape[1] + 1).scatter(1, place, by_each[:, :-1])
        return self.head.means.ops.pull_but(
            self.blocks[number], inside, own[:, :-1], self.own[:, -1:], by_each[:, -1:], *self.head.means.shaping
        )


def _places(chosen: torch.Tensor, words: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Where some words [n, K] stand in a block, behind its end where they do not; and the block's words among them."""
    width = words.stop - words.start
    place = chosen - words.start
    place = torch.where((place >= 0) & (place < width), place, width)
    inside = torch.zeros(len(chosen), width + 1, dtype=torch.bool, device=chosen.device)
    return place, inside.scatter(1, place, True)[:, :-1]


def _log_total(head: Head, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """The log of the sum of exp(logit) of all words: [n, 1]."""
    most = torch.full((len(blocks[0]), 1), -torch.inf, device=blocks[0].device)
    total = torch.zeros_like(most)
    for logits in blocks:
        most, total = head.means.ops.log_sum(logits, most, total, *head.means.shaping)
    return most + total.log()


def _chunk(head: Head, inputs: Sequence[torch.Tensor], told: AllWords | TopWords, how: Divergence) -> _Chunk:
    return _Apart(head, inputs, told, how) if isinstance(told, TopWords) else _Whole(head, inputs, told, how)


class _Divergences(torch.autograd.Function):
    """`divergences`. The gradients follow the order told, how, means, bias, input, weight, ..."""

    @staticmethod
    def forward(
        ctx: Any,
        told: AllWords | TopWords,
        how: Divergence,
        means: Means,
        bias: torch.Tensor | None,
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        inputs, weights = tensors[0::2], tensors[1::2]
        head = Head(weights, bias, means)
        ctx.needs = needs_bias, needs_inputs, needs_weights = (
            ctx.needs_input_grad[3],
            ctx.needs_input_grad[4::2],
            ctx.needs_input_grad[5::2],
        )
        ctx.trained = needs_bias or any(needs_weights)
        frozen = Sums([None] * len(weights), None)
        values, slopes = [], []
        for part in parts_of(len(inputs[0]), tokens_at_once(head)):
            chunk = _chunk(head, [x[part] for x in inputs], told.part(part), how)
            values.append(chunk.value)
            if any(needs_inputs) and not ctx.trained:
                slopes.append(chunk.pull(torch.ones_like(chunk.value), frozen))
        ctx.slopes = [torch.cat(one) for one in zip(*slopes, strict=True)]
        if ctx.trained:
            ctx.head, ctx.told, ctx.how = head, told, how
            ctx.save_for_backward(*inputs)
        return torch.cat(values)[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        """Weights' and bias's gradients are summed in float32 and given in their own dtype."""
        needs_bias, needs_inputs, needs_weights = ctx.needs
        if not ctx.trained:
            by_inputs = [one * gradient[:, None].to(one.dtype) for one in ctx.slopes]
            none: list[Any] = [None] * len(needs_inputs)
            by = Sums(none, None)
        else:
            inputs, head = ctx.saved_tensors, ctx.head
            by = Sums.of(head, needs_bias, needs_weights)
            parts = [
                _chunk(head, [x[part] for x in inputs], ctx.told.part(part), ctx.how).pull(gradient[part, None], by)
                for part in parts_of(len(inputs[0]), tokens_at_once(head))
            ]
            by_inputs = [torch.cat(one) for one in zip(*parts, strict=True)]
        found: list[Any] = []
        for number, (needed, by_weight) in enumerate(zip(needs_inputs, by.weights, strict=True)):
            found.append(by_inputs[number] if needed else None)
            found.append(None if by_weight is None else by_weight.to(ctx.head.weights[number].dtype))
        by_bias = None if by.bias is None else by.bias.to(ctx.head.bias.dtype)
        return (None, None, None, by_bias, *found)
