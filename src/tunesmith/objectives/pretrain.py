"""Pre-training, from scratch or continued: likelihood of every token of every document or conversation."""

from typing import TYPE_CHECKING, ClassVar

from tunesmith.objectives._regularised import Regularised
from tunesmith.types import Batch, LossSum, Scores

if TYPE_CHECKING:
    import torch


class Pretrain(Regularised):
    """Minimise -sum(log p(token | everything before it in its row)). Documents end with EOS and fill every row."""

    documents: ClassVar[bool] = True
    likelihood: ClassVar[bool] = True

    def count(self, batch: Batch) -> "torch.Tensor":
        """The number of trained tokens."""
        return batch.weight.sum()

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """The negative log-likelihood."""
        if self.label_smoothing or self.z_loss:
            return self.regularised(scores, batch)
        return LossSum(-(batch.weight * scores.logps).sum())
