"""Preference by likelihood per token, with a target margin and without a reference (arXiv 2405.14734)."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.objectives import _preference_losses, _sequences
from tunesmith.seams import Objective
from tunesmith.types import Batch, LossSum, Scores

if TYPE_CHECKING:
    import torch


class SimPO(Objective):
    """Make every token of the chosen answer likelier than those of the rejected one, by a margin."""

    branches: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    learning_rate_factor: ClassVar[float] = 0.05  # with SFT's own, preferences are learned by heart

    beta: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """How much a difference of the answers' log-probabilities per token counts."""
    gamma: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """The margin by which the chosen answer should be ahead, beta included: the paper has half of beta or less."""
    sft_weight: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Weight of the chosen answer's own negative log-likelihood per token (with one it is CPO-SimPO)."""

    def count(self, batch: Batch) -> "torch.Tensor":
        """The number of pairs."""
        return _sequences.num_pairs(batch)

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """-log sigmoid(r(better) - r(worse) - gamma), r being beta * log p / length (equation 6)."""
        pairs = _sequences.pairs(batch)  # [2, P]
        policy, lengths = _sequences.sums(scores.logps, batch)[pairs], _sequences.lengths(batch)[pairs]
        rewards = self.beta * policy / lengths
        total = -_preference_losses.logsigmoid(rewards[0] - rewards[1] - self.gamma).sum()
        total = total + self.sft_weight * _preference_losses.likelihood(policy, lengths).sum()
        return LossSum(total, _preference_losses.metrics(policy, rewards))
