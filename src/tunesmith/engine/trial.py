"""What a model says of a few random sequences, each by itself: what computes it in another way is judged by that.

Letters: T tokens, S sequences, N asked tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch

from tunesmith.engine.compat import FAILURES, attention_of
from tunesmith.engine.device import compute_dtype
from tunesmith.engine.elementwise import Elementwise
from tunesmith.engine.layers import Fused, fuse
from tunesmith.engine.model import base_of, has_words
from tunesmith.engine.scores import Scorer
from tunesmith.engine.values import ValueScorer
from tunesmith.types import Batch, Scores

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}  # of log-probabilities around -10
OF_VALUES = 0.5  # the part of that tolerance, times the largest of them, that values may differ by
NOISE = 2.0  # times the rounding that is seen once: that of another order is as likely above it as below
OTHER = {"sdpa": "eager", "eager": "sdpa"}  # the same attention, rounded in other places


@dataclass(frozen=True)
class Trial:
    """A model, random sequences, and what it says of each of them alone: log-probabilities, or values."""

    model: Any
    batch: Batch
    reference: torch.Tensor  # [1, T], or [S, labels], or [N, labels]
    allowed: tuple[float, float]  # mean and largest difference that rounding makes

    @classmethod
    def of(cls, model: Any, batch: Batch, alone: Callable[[Any, Batch], torch.Tensor]) -> Self:
        """In half precision a deep model's own two attentions differ by more than any fixed tolerance: so does ours."""
        kind = compute_dtype(next(model.parameters()))
        reference = alone(model, batch)
        size = 1.0 if has_words(model) else OF_VALUES * reference.abs().max().item()
        allowed = [TOLERANCE.get(kind, 0.2) * size] * 2
        base = base_of(model)
        own = attention_of(base)
        if kind != torch.float32 and own in OTHER:
            base.set_attn_implementation(OTHER[own])
            noise = (alone(model, batch) - reference).abs() if attention_of(base) != own else torch.zeros(1)
            base.set_attn_implementation(own)
            seen = (NOISE * noise.mean().item(), NOISE * noise.max().item())
            allowed = [max(pair) for pair in zip(allowed, seen, strict=True)]
        return cls(model, batch, reference, (allowed[0], allowed[1]))

    def scores(self, scorer: Callable[..., Scores]) -> str | None:
        """What is wrong with a scorer's log-probabilities or values of the sequences in one batch, if anything."""
        try:
            found = read(scorer(self.model, self.batch))
        except FAILURES as error:
            return said(error)
        what = "log-probabilities" if has_words(self.model) else "values"
        most = (found - self.reference).abs().max().item()
        return None if self.agree(found, self.reference) else f"{what} differ by {most:.2g}"

    def agree(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether log-probabilities differ by no more than rounding."""
        difference = (found - expected).abs()
        mean, largest = self.allowed
        return difference.mean().item() <= mean and difference.max().item() <= largest

    def fused(self, ops: Elementwise, plain: Scorer | ValueScorer) -> tuple[Fused, list[str]]:
        """The layers that compute in our way, if they gave the model's own numbers; what is to be said of them.

        Norms and gated pairs stay the model's own where `ops` is not compiled. `plain` leaves the head as it is.
        """
        layers = fuse(self.model, ops if ops.compiled else None)
        problem = self.scores(plain) if layers.before else None
        if problem is None:
            return layers, []
        layers.undo()
        return Fused(()), [f"the model's layers run as they are ({problem})"]


def read(found: Scores) -> torch.Tensor:
    """What a scorer was asked for."""
    return found.logps if found.values is None else found.values


def said(error: Exception) -> str:
    """An error in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
