"""Supervised fine-tuning: weighted likelihood of the answers."""

from typing import TYPE_CHECKING, ClassVar

from tunesmith.seams import Objective
from tunesmith.types import Batch, LossSum, Scores

if TYPE_CHECKING:
    import torch


class SFT(Objective):
    """Minimise -sum(weight * log p(token | everything before it)), counted in weight."""

    likelihood: ClassVar[bool] = True

    def count(self, batch: Batch) -> "torch.Tensor":
        """The summed weight of the trained tokens."""
        return batch.weight.sum()

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """The weighted negative log-likelihood."""
        return LossSum(-(batch.weight * scores.logps).sum())
