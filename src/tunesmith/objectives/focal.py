"""The focal loss on tokens (arXiv 1708.02002)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.seams import Objective
from tunesmith.types import Batch, LossSum, Scores

if TYPE_CHECKING:
    import torch


class Focal(Objective):
    """Minimise -sum(weight * (1 - p)^gamma * log p), p a token's probability: likely tokens count less."""

    gamma: Annotated[float, Field(ge=0)] = 2.0
    """How much less a likely token counts; 0 is sft."""

    def count(self, batch: Batch) -> "torch.Tensor":
        """The summed weight of the trained tokens."""
        return batch.weight.sum()

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """The focal loss, and the plain likelihood beside it."""
        unsure = (-scores.logps.expm1()).clamp_min(1e-12)  # 1 - p; at 0 a root has no slope
        likelihood = (batch.weight * scores.logps).sum().detach()
        total = -(batch.weight * unsure**self.gamma * scores.logps).sum()
        return LossSum(total, {"nll": (-likelihood, batch.weight.sum())})
