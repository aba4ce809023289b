"""Log-probabilities of asked words, from what enters a head, in blocks: the whole logits never exist.

The gradient of one token's log-probability with respect to what enters the head does not depend on the loss. So the
forward pass makes it beside the log-probability, from the same logits, and the backward pass only multiplies: two
matrix products a block in all, for any objective. Softmax's total is not known before the last block of the vocabulary,
so sums are kept against the largest logit so far (arXiv 1805.02867), and the asked word, whose share may be near 1,
stands apart.

A head that is trained needs every word's share, and so its logits once more. Where it is known beforehand what the loss
weighs each token with, forward and backward share one pass over some tokens' logits: three products. Otherwise the
backward pass makes the logits again: four.

A head may be a sum of products, its own and that of a low-rank update: each a pair of an input and a weight.

Letters: N tokens, n of them at once, D features that enter, V vocabulary, v words of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from tunesmith.engine.elementwise import PLAIN, Elementwise, shaped
from tunesmith.engine.pool import multiply

BLOCK_TOKENS = 1024  # tokens that meet the head together
BLOCK_LOGITS = 1 << 22  # logits that exist at once: 8 MB in bfloat16, which a processor's cache holds
KEPT_LOGITS = 1 << 26  # those of all words of some tokens, where forward and backward share a pass: 128 MB in bfloat16


class Shaping(NamedTuple):
    """What a model does to its logits after the head: `cap * tanh(scale * logits / cap)`."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "Shaping":
        """Read the scale (Cohere, Granite, Falcon-H1) and the soft cap (Gemma) from a model's config."""
        config = config.get_text_config()
        scale = 1.0
        for name in ("logit_scale", "lm_head_multiplier"):
            scale *= getattr(config, name, None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        return cls(scale, cap)

    def cooled(self, temperature: float) -> "Shaping":
        """The shape of logits that are divided by a temperature."""
        return Shaping(self.scale / temperature, None if self.cap is None else self.cap / temperature)


@dataclass(frozen=True)
class Means:
    """How logits become log-probabilities, and how many of them at once."""

    shaping: Shaping = Shaping()
    ops: Elementwise = field(default=PLAIN, repr=False)
    tokens: int = BLOCK_TOKENS
    logits: int = BLOCK_LOGITS
    kept: int = KEPT_LOGITS


Pairs = Sequence[tuple[torch.Tensor, torch.Tensor]]  # inputs [N, D] and weights [V, D] whose products are added


def log_probabilities(
    pairs: Pairs,
    bias: torch.Tensor | None,  # [V]
    target: torch.Tensor,  # [N]
    means: Means,
    known: torch.Tensor | None = None,  # [N]
    entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log softmax(shaped(sum of input @ weight.T + bias))[target], and the entropy where asked for: float32 [N] each.

    `known` is what the loss weighs each log-probability with, but for one factor, where that is known beforehand.
    """
    tensors = [tensor for pair in pairs for tensor in pair]
    if not torch.is_grad_enabled():  # autograd's functions are told what could be trained, not whether it is now
        tensors, bias = [tensor.detach() for tensor in tensors], None if bias is None else bias.detach()
    found: Any = _LogProbabilities.apply(target, means, None if entropy else known, entropy, bias, *tensors)
    return found if entropy else (found, None)


@dataclass
class _Row:
    """What is known of some tokens: by blocks of the vocabulary, then for good."""

    most: torch.Tensor  # [n, 1] the largest logit so far
    total: torch.Tensor  # [n, 1] sum of exp(logit - most)
    own: torch.Tensor  # [n, 1] the asked word's logit, shaped
    warmth: torch.Tensor  # [n, 1] sum of exp(logit - most) * logit
    log_total: torch.Tensor  # [n, 1] once all blocks were seen

    @classmethod
    def of(cls, target: torch.Tensor) -> "_Row":
        nothing = torch.zeros(len(target), 1, device=target.device)
        return cls(torch.full_like(nothing, -torch.inf), nothing, nothing, nothing, nothing)

    @property
    def entropy(self) -> torch.Tensor:
        return self.log_total - self.warmth / self.total


@dataclass(frozen=True, eq=False)
class Head:
    """The weights of a head."""

    weights: Sequence[torch.Tensor]  # [V, D] each
    bias: torch.Tensor | None
    means: Means

    def blocks(self) -> Iterator[slice]:
        """Blocks of the vocabulary."""
        return parts_of(len(self.weights[0]), max(16, self.means.logits // self.means.tokens))

    def logits(self, inputs: Sequence[torch.Tensor], words: slice) -> torch.Tensor:
        """The logits of a block of words, unshaped [n, v]."""
        found = multiply(inputs[0], self.weights[0][words].T, None if self.bias is None else self.bias[words])
        for x, weight in zip(inputs[1:], self.weights[1:], strict=True):
            found.addmm_(x, weight[words].T)
        return found

    def own(self, row: _Row, logits: torch.Tensor, target: torch.Tensor, words: slice) -> torch.Tensor:
        """The asked words' logits [n, 1], with those that a block of logits holds."""
        place = target[:, None] - words.start
        inside = (place >= 0) & (place < logits.shape[1])
        found, _ = shaped(logits.gather(1, place.clamp(0, logits.shape[1] - 1)), *self.means.shaping)
        return torch.where(inside, found, row.own)

    def look(self, inputs: Sequence[torch.Tensor], target: torch.Tensor) -> _Row:
        """Log-probabilities of some tokens, and nothing for a backward pass."""
        row = _Row.of(target)
        for words in self.blocks():
            logits = self.logits(inputs, words)
            row.own = self.own(row, logits, target, words)
            row.most, row.total = self.means.ops.log_sum(logits, row.most, row.total, *self.means.shaping)
            del logits
        row.log_total = row.most + row.total.log()
        return row

    def online(
        self, inputs: Sequence[torch.Tensor], target: torch.Tensor, entropy: bool
    ) -> tuple[_Row, list[torch.Tensor], list[torch.Tensor]]:
        """Log-probabilities of some tokens with their gradients by each input [n, D], and the entropies' gradients."""
        row = _Row.of(target)
        sums = [torch.zeros_like(x, dtype=torch.float32) for x in inputs]
        warm = [torch.zeros_like(one) for one in sums] if entropy else []
        wide = [torch.empty_like(one) for one in sums]
        for words in self.blocks():
            logits = self.logits(inputs, words)
            row.own = self.own(row, logits, target, words)
            place = target[:, None] - words.start
            most, total, warmth, warm_shares = self.means.ops.weigh(
                logits, row.most, place, *self.means.shaping, entropy
            )
            shrink = torch.exp(row.most - most)
            row.most, row.total = most, row.total * shrink + total
            for number, weight in enumerate(self.weights):
                sums[number].mul_(shrink).add_(wide[number].copy_(logits @ weight[words]))
                if entropy:
                    warm[number].mul_(shrink).add_(wide[number].copy_(warm_shares @ weight[words]))
            del logits  # the next ones lie in the same place
            if entropy:
                row.warmth = row.warmth * shrink + warmth
        row.log_total = row.most + row.total.log()
        scale, cap = self.means.shaping
        slope: Any = scale if cap is None else scale * (1 - (row.own / cap).square())  # at the asked words
        share = torch.exp(row.own - row.log_total)
        slopes, warm_slopes = [], []
        for number, weight in enumerate(self.weights):
            own = weight[target].float() * slope
            others = sums[number] / row.total
            slopes.append(((1 - share) * own - others).to(inputs[number].dtype))
            if entropy:  # -sum of share * (logit - log total + entropy) * slope * weight
                shift = row.log_total - row.entropy
                pulled = shift * others - warm[number] / row.total - share * (row.own - shift) * own
                warm_slopes.append(pulled.to(inputs[number].dtype))
        return row, slopes, warm_slopes

    def together(
        self, inputs: Sequence[torch.Tensor], target: torch.Tensor, known: torch.Tensor, by: "Sums"
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Log-probabilities [n, 1] of some tokens, and the gradients of known * log-probability by each input [n, D].

        Those by the weights and the bias are added to `by`.
        """
        row, blocks = _Row.of(target), []
        for words in self.blocks():
            logits = self.logits(inputs, words)
            row.own = self.own(row, logits, target, words)
            row.most, row.total = self.means.ops.log_sum(logits, row.most, row.total, *self.means.shaping)
            blocks.append(logits)
        row.log_total = row.most + row.total.log()
        found = self.pull(row.log_total, inputs, target, (known[:, None], None, None), by, blocks)
        return row.own - row.log_total, found

    def pull(
        self,
        log_total: torch.Tensor,  # [n, 1]
        inputs: Sequence[torch.Tensor],
        target: torch.Tensor,
        wanted: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None],
        by: "Sums",
        blocks: list[torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """The gradients by each input [n, D] where `blocks` of logits are given; those by weights and bias into `by`.

        `wanted` are the gradients of log-probabilities and entropies [n, 1], and the entropies [n, 1].
        """
        sums = [torch.zeros_like(x, dtype=torch.float32) for x in inputs]
        for number, words in enumerate(self.blocks()):
            logits = self.logits(inputs, words) if blocks is None else blocks[number]
            spread = self.means.ops.spread(
                logits, log_total, target[:, None] - words.start, *wanted, *self.means.shaping
            )
            del logits
            for place, (x, weight) in enumerate(zip(inputs, self.weights, strict=True)):
                if blocks is not None:
                    sums[place] += spread @ weight[words]
                by.add(place, words, spread, x)
            if by.bias is not None:
                by.bias[words] += spread.sum(0, dtype=torch.float32)
        return [one.to(x.dtype) for one, x in zip(sums, inputs, strict=True)]


@dataclass(eq=False)
class Sums:
    """Gradients of a head's trained weights and bias, summed in float32; None where one is frozen."""

    weights: list[torch.Tensor | None]
    bias: torch.Tensor | None

    @classmethod
    def of(cls, head: Head, needs_bias: bool, needs: Sequence[bool]) -> "Sums":
        """Zeros for those that are trained."""
        found = [
            torch.zeros_like(one, dtype=torch.float32) if needed else None
            for one, needed in zip(head.weights, needs, strict=True)
        ]
        bias = head.bias if needs_bias else None
        return cls(found, None if bias is None else torch.zeros_like(bias, dtype=torch.float32))

    def add(self, number: int, words: slice, spread: torch.Tensor, x: torch.Tensor) -> None:
        """Add a block's gradient: spread [n, v] and input [n, D]."""
        total = self.weights[number]
        if total is not None:
            total[words] += spread.T @ x


class _LogProbabilities(torch.autograd.Function):
    """`log_probabilities`. The gradients follow the order target, means, known, entropy, bias, input, weight, ..."""

    @staticmethod
    def forward(
        ctx: Any,
        target: torch.Tensor,
        means: Means,
        known: torch.Tensor | None,
        entropy: bool,
        bias: torch.Tensor | None,
        *tensors: torch.Tensor,
    ) -> Any:
        inputs, weights = tensors[0::2], tensors[1::2]
        head = Head(weights, bias, means)
        needs_bias, needs_inputs, needs_weights = (
            ctx.needs_input_grad[place] for place in (4, slice(5, None, 2), slice(6, None, 2))
        )
        trained = needs_bias or any(needs_weights)
        ctx.head, ctx.target, ctx.entropy, ctx.count = head, target, entropy, len(inputs)
        ctx.needs = needs_bias, needs_inputs, needs_weights
        if trained and known is not None:
            by = Sums.of(head, needs_bias, needs_weights)
            size = max(64, means.kept // len(weights[0]))
            parts = [
                head.together([x[part] for x in inputs], target[part], known[part], by)
                for part in parts_of(len(target), size)
            ]
            ctx.known, ctx.by = known, by
            ctx.slopes = [torch.cat(one) for one in zip(*(slopes for _, slopes in parts), strict=True)]
            return torch.cat([logps for logps, _ in parts])[:, 0]
        ctx.known = None
        made = []
        for part in parts_of(len(target), means.tokens):
            some = [x[part] for x in inputs]
            if entropy or any(needs_inputs):
                made.append(head.online(some, target[part], entropy))
            else:
                made.append((head.look(some, target[part]), [], []))
        rows = [row for row, _, _ in made]
        ctx.slopes, ctx.warm = (
            [torch.cat(one) for one in zip(*(found[place] for found in made), strict=True)] for place in (1, 2)
        )
        if trained:
            ctx.log_total = torch.cat([row.log_total for row in rows])
            ctx.entropies = torch.cat([row.entropy for row in rows]) if entropy else None
            ctx.save_for_backward(*inputs)
        logps = torch.cat([row.own - row.log_total for row in rows])[:, 0]
        return (logps, torch.cat([row.entropy[:, 0] for row in rows])) if entropy else logps

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Weights' and bias's gradients are summed in float32 and given in their own dtype."""
        head, (needs_bias, needs_inputs, needs_weights) = ctx.head, ctx.needs
        by = Sums([None] * ctx.count, None)
        if ctx.known is not None:
            by, ctx.by = ctx.by, None
            assert by is not None, "a head's gradients are made once"
            factor = (gradients[0] * ctx.known).sum() / ctx.known.square().sum().clamp_min(1e-30)
            by_inputs = [one * factor for one in ctx.slopes]
            for one in [*by.weights, by.bias]:
                if one is not None:
                    one.mul_(factor)
        else:
            by_inputs = [one * gradients[0][:, None].to(one.dtype) for one in ctx.slopes]
            for one, warm in zip(by_inputs, ctx.warm, strict=False):
                one += warm * gradients[1][:, None].to(one.dtype)
            if needs_bias or any(needs_weights):
                by = Sums.of(head, needs_bias, needs_weights)
                _pull_weights(ctx, gradients, by)
        found: list[torch.Tensor | None] = []
        made = by_inputs or [None] * ctx.count
        for number, by_weight in enumerate(by.weights):
            found.append(made[number] if needs_inputs[number] else None)
            found.append(None if by_weight is None else by_weight.to(head.weights[number].dtype))
        by_bias = None if by.bias is None else by.bias.to(head.bias.dtype)
        return (None, None, None, None, by_bias, *found)


def _pull_weights(ctx: Any, gradients: tuple[torch.Tensor, ...], by: Sums) -> None:
    """Make the logits again, for the gradients of a trained head."""
    inputs = ctx.saved_tensors
    for part in parts_of(len(ctx.target), ctx.head.means.tokens):
        warm = (gradients[1][part, None], ctx.entropies[part]) if ctx.entropy else (None, None)
        wanted = (gradients[0][part, None], *warm)
        ctx.head.pull(ctx.log_total[part], [x[part] for x in inputs], ctx.target[part], wanted, by)


def parts_of(length: int, size: int) -> Iterator[slice]:
    """The slices of a length, each of a size but the last; one empty slice where there is nothing."""
    for start in range(0, max(length, 1), size):
        yield slice(start, min(start + size, length))
