"""Dynamic fine-tuning (arXiv 2508.05629)."""

from typing import TYPE_CHECKING

from tunesmith.seams import Objective
from tunesmith.types import Batch, LossSum, Scores

if TYPE_CHECKING:
    import torch


class DFT(Objective):
    """Minimise -sum(weight * p * log p), p a token's own probability, without a gradient (its equation 9).

    The gradient of a likelihood grows with 1 / p; without that, unlikely tokens do not rule the update.
    """

    def count(self, batch: Batch) -> "torch.Tensor":
        """The summed weight of the trained tokens."""
        return batch.weight.sum()

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """The negative log-likelihood, each token's weighed by its probability; and the plain one beside it."""
        weight = batch.weight * scores.logps.detach().exp()
        likelihood = (batch.weight * scores.logps).sum().detach()
        return LossSum(-(weight * scores.logps).sum(), {"nll": (-likelihood, batch.weight.sum())})
