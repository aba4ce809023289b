"""Supervised fine-tuning: weighted likelihood of the answers."""

from typing import TYPE_CHECKING, ClassVar

from tunesmith.objectives._regularised import Regularised
from tunesmith.types import Batch, LossSum, Scores

if TYPE_CHECKING:
    import torch


class SFT(Regularised):
    """Minimise -sum(weight * log p(token | everything before it)), counted in weight."""

    likelihood: ClassVar[bool] = True

    def count(self, batch: Batch) -> "torch.Tensor":
        """The summed weight of the trained tokens."""
        return batch.weight.sum()

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """The weighted negative log-likelihood."""
        if self.label_smoothing or self.z_loss:
            return self.regularised(scores, batch)
        return LossSum(-(batch.weight * scores.logps).sum())
