"""From a batch to log-probabilities: only asked positions meet the head, in chunks, and the whole logits never exist.

The gradient of one token's log-probability with respect to its hidden state does not depend on the loss. So the
forward pass computes it beside the log-probability, [N, D], and the backward pass only multiplies: two matrix products
a chunk in all, for any objective. A head that is trained needs its logits once more in the backward pass.

Letters: T tokens, N asked tokens, D hidden size, V vocabulary.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.engine.attention import Layout
from tunesmith.engine.device import compute_dtype
from tunesmith.engine.model import base_of
from tunesmith.types import Batch, Scores

CHUNK_LOGITS = 1 << 25  # logits that exist at once: 128 MB in float32


@dataclass(frozen=True)
class Shaping:
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

    def apply_(self, logits: torch.Tensor) -> torch.Tensor:
        """Shape logits in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits

    def slope(self, shaped: torch.Tensor) -> torch.Tensor | float:
        """The derivative of the shaped logits with respect to the head's."""
        return self.scale if self.cap is None else self.scale * (1 - (shaped / self.cap) ** 2)


class LogProbabilities(torch.autograd.Function):
    """log softmax(shape(hidden @ weight.T + bias))[target], float32, without the logits being kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # [N, D]
        weight: torch.Tensor,  # [V, D]
        bias: torch.Tensor | None,  # [V]
        target: torch.Tensor,  # [N]
        shaping: Shaping,
        chunk_tokens: int,
    ) -> torch.Tensor:
        """Log-probabilities [N]; keeps each token's gradient with respect to its hidden state [N, D]."""
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        logps = hidden.new_empty(len(hidden), dtype=torch.float32)
        slopes = torch.empty_like(hidden) if needs_hidden else None
        for part in _parts(len(hidden), chunk_tokens):
            logits = _logits(hidden[part], weight, bias, shaping)  # [n, V]
            log_sum = logits.logsumexp(-1, keepdim=True)
            logps[part] = (logits.gather(-1, target[part, None]) - log_sum)[:, 0]
            if slopes is not None:
                slopes[part] = _slope_(logits, log_sum, target[part], shaping).to(weight.dtype) @ weight
        kept = (hidden, weight, bias) if needs_weight or needs_bias else (None, None, None)
        ctx.save_for_backward(slopes, target, *kept)
        ctx.shaping, ctx.chunk_tokens = shaping, chunk_tokens
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of hidden [N, D], weight [V, D] (summed in float32) and bias [V]."""
        (gradient,) = gradients  # [N]
        slopes, target, hidden, weight, bias = ctx.saved_tensors
        by_hidden = slopes * gradient[:, None].to(slopes.dtype) if slopes is not None else None
        if weight is None:
            return by_hidden, None, None, None, None, None
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for part in _parts(len(hidden), ctx.chunk_tokens):
            logits = _logits(hidden[part], weight, bias, ctx.shaping)
            slope = _slope_(logits, logits.logsumexp(-1, keepdim=True), target[part], ctx.shaping)
            slope.mul_(gradient[part, None])
            if by_weight is not None:
                by_weight += slope.to(weight.dtype).T @ hidden[part]
            if by_bias is not None:
                by_bias += slope.sum(0)
        return (
            by_hidden,
            by_weight.to(weight.dtype) if by_weight is not None else None,
            by_bias.to(bias.dtype) if by_bias is not None else None,
            None,
            None,
            None,
        )


def _parts(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, start + size)


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shaping: Shaping) -> torch.Tensor:
    return shaping.apply_(torch.nn.functional.linear(hidden, weight, bias).float())


def _slope_(logits: torch.Tensor, log_sum: torch.Tensor, target: torch.Tensor, shaping: Shaping) -> torch.Tensor:
    """Turn shaped logits [n, V] into the gradient of the target's log-probability with respect to the head's output."""
    by_logits = shaping.slope(logits)
    logits.sub_(log_sum).exp_().neg_()
    logits.scatter_add_(-1, target[:, None], torch.ones_like(log_sum))
    return logits.mul_(by_logits)


@dataclass(frozen=True)
class Scorer:
    """How a model's log-probabilities are computed.

    `fused` bypasses the head; otherwise the model makes the logits of the asked positions itself.
    """

    head: torch.nn.Module
    shaping: Shaping
    fused: bool
    selects: bool  # the model takes `logits_to_keep`
    packed: bool  # the model's attention is tunesmith's
    chunk_tokens: int | None = None  # None: as many as keep CHUNK_LOGITS

    @classmethod
    def of(cls, model: Any, fused: bool = True, packed: bool = True) -> "Scorer":
        """The scorer of a loaded (and perhaps adapted) causal model."""
        base = base_of(model)
        head = base.get_output_embeddings()
        selects = "logits_to_keep" in inspect.signature(base.forward).parameters
        return cls(head, Shaping.of(base.config), fused and type(head) is torch.nn.Linear, selects, packed)

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Scores:
        """The log-probability of each asked target under `model`, which may be wrapped for distribution."""
        asked = batch.weight[0].nonzero()[:, 0]  # [N]
        target = batch.target[0, asked]
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "use_cache": False,
        }
        if self.packed:
            inputs["packed"] = Layout.of(batch)
        else:
            assert batch.prefix is None, "run.py refuses shared beginnings without packed attention"
        if self.selects:
            inputs["logits_to_keep"] = asked
        if self.fused:
            hidden = head_input(model, self.head, inputs)  # [1, N or T, D]
            found = self._from_hidden(hidden[0] if self.selects else hidden[0, asked], target)
        else:
            logits = model(**inputs).logits[0]
            logits = (logits if self.selects else logits[asked]).float()  # [N, V]
            found = logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1)
        logps = torch.zeros_like(batch.weight).index_put((torch.zeros_like(asked), asked), found)
        return Scores(logps)

    def _from_hidden(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.head, torch.nn.Linear), "fused heads are"
        weight, bias = self.head.weight, self.head.bias
        dtype = compute_dtype(weight)
        chunk = self.chunk_tokens or max(16, CHUNK_LOGITS // len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            return LogProbabilities.apply(
                hidden.to(dtype),
                weight.to(dtype),
                None if bias is None else bias.to(dtype),
                target,
                self.shaping,
                chunk,
            )


def head_input(model: torch.nn.Module, head: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Run the model and return what would enter its head, which itself is given no position to work on."""
    caught: list[torch.Tensor] = []
    with _catching(head, caught):
        model(**inputs)
    (hidden,) = caught
    return hidden


@contextmanager
def _catching(head: torch.nn.Module, caught: list[torch.Tensor]) -> Iterator[None]:
    def catch(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        caught.append(args[0])
        return (args[0][:, :0], *args[1:])

    handle = head.register_forward_pre_hook(catch)
    try:
        yield
    finally:
        handle.remove()
