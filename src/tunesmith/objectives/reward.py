"""A reward model: Bradley-Terry on pairs (arXiv 1706.03741, 2203.02155), Plackett-Luce on longer rankings."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.objectives import _sequences
from tunesmith.seams import Objective
from tunesmith.types import Batch, Head, LossSum, Scores

if TYPE_CHECKING:
    import torch


class Reward(Objective):
    """Score the better answer above the worse: a new head gives each conversation one number."""

    branches: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    labels: ClassVar[bool] = True  # a margin, where the data have one
    needs: ClassVar[tuple[str, ...]] = ("values",)

    center_rewards_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """How much the rewards of a pair are pulled towards a sum of 0 (arXiv 2312.09244); 0.01 is usual."""

    def head(self, classes: tuple[str, ...]) -> Head:
        """One number."""
        return Head(("reward",))

    def count(self, batch: Batch) -> "torch.Tensor":
        """The number of choices: the best of what is left, until one is left. A pair has one."""
        return (_sequences.branches(batch) > 0).sum()

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """-log of the chance of the given order: each is chosen from itself and all that stand behind it.

        P(1, 2, ..., n) = prod_i exp(r_i) / sum_{j >= i} exp(r_j + margin [j > i]). For n = 2 it is Bradley-Terry's
        sigmoid(r_1 - r_2 - margin).
        """
        assert scores.values is not None, "this objective needs them"
        rewards = scores.values[:, 0]  # [S]
        place = _sequences.branches(batch)
        sample = (place == 0).cumsum(0)
        behind = (sample[:, None] == sample[None, :]) & (place[:, None] <= place[None, :])  # [S, S], itself included
        margin = batch.label.nan_to_num(0.0)[:, None] * (place[:, None] < place[None, :])
        rivals = (rewards[None, :] + margin).masked_fill(~behind, float("-inf"))
        total = (rivals.logsumexp(1) - rewards).sum()  # the last has no rival, and adds 0
        next_ = (place[1:] > 0).nonzero()[:, 0]  # each and the one behind it
        total = total + self.center_rewards_coefficient * (rewards[next_] + rewards[next_ + 1]).square().sum()
        better, worse = _sequences.pairs(batch)
        margins = rewards[better] - rewards[worse]
        return LossSum(
            total,
            {
                "rewards_chosen": _sequences.means(rewards[better]),
                "rewards_rejected": _sequences.means(rewards[worse]),
                "margins": _sequences.means(margins),
                "accuracy": _sequences.means((margins > 0).float()),
            },
        )
