"""What a likelihood may have beside itself: label smoothing (arXiv 1512.00567) and z-loss (arXiv 2204.02311)."""

from typing import Annotated, Any

from pydantic import Field

from tunesmith.seams import Objective
from tunesmith.types import Batch, LossSum, Scores


class Regularised(Objective):
    """The options of a likelihood, and its loss with them."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each target that all words of the vocabulary have alike."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared log of softmax's sum, which keeps logits near 0: PaLM's is 1e-4."""

    def reads(self) -> tuple[str, ...]:
        """What the options need besides log-probabilities."""
        asked = {"lead": self.label_smoothing, "normaliser": self.z_loss}
        return (*type(self).needs, *(name for name, wanted in asked.items() if wanted))

    def is_likelihood(self) -> bool:
        """Also with label smoothing, whose part is no log-probability's; not with z-loss."""
        return super().is_likelihood() and not self.z_loss

    def regularised(self, scores: Scores, batch: Batch) -> LossSum:
        """The negative log-likelihood with the options' parts, each a metric too.

        Smoothing by e takes (1 - e) * -log p(target) + e * the mean of -log p over all words. Log p is a logit less
        the log of softmax's sum, so that is -log p(target) + e * (the target's logit - the mean logit).
        """
        likelihood, count = -(batch.weight * scores.logps).sum(), batch.weight.sum()
        metrics: dict[str, tuple[Any, Any]] = {"nll": (likelihood.detach(), count)}
        total = likelihood
        if scores.lead is not None:
            total = total + self.label_smoothing * (batch.weight * scores.lead).sum()
        if scores.normaliser is not None:
            squares = (batch.weight * scores.normaliser.square()).sum()
            total = total + self.z_loss * squares
            metrics["z_loss"] = (self.z_loss * squares.detach(), count)
        return LossSum(total, metrics)
