"""Contrastive preference optimisation: DPO with a uniform reference, and likelihood (arXiv 2401.08417)."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.objectives import _preference_losses, _sequences
from tunesmith.seams import Objective
from tunesmith.types import Batch, LossSum, Scores

if TYPE_CHECKING:
    import torch


class CPO(Objective):
    """Make the chosen answer likely, and likelier than the rejected one; without a reference."""

    branches: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    learning_rate_factor: ClassVar[float] = 0.05  # with SFT's own, preferences are learned by heart

    beta: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """How much a difference of the answers' log-probabilities counts."""
    sft_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of the chosen answer's own negative log-likelihood per token, which keeps the model near the data."""

    def count(self, batch: Batch) -> "torch.Tensor":
        """The number of pairs."""
        return _sequences.num_pairs(batch)

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """-log sigmoid(beta * (log p(better) - log p(worse))), and the likelihood."""
        pairs = _sequences.pairs(batch)  # [2, P]
        policy, lengths = _sequences.sums(scores.logps, batch)[pairs], _sequences.lengths(batch)[pairs]
        rewards = self.beta * policy
        total = -_preference_losses.logsigmoid(rewards[0] - rewards[1]).sum()
        total = total + self.sft_weight * _preference_losses.likelihood(policy, lengths).sum()
        return LossSum(total, _preference_losses.metrics(policy, rewards))
