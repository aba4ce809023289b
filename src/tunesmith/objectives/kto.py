"""Kahneman-Tversky optimisation: single answers that are good or bad (arXiv 2402.01306)."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.objectives import _sequences
from tunesmith.seams import Objective
from tunesmith.types import Batch, LossSum, Scores

if TYPE_CHECKING:
    import torch


class KTO(Objective):
    """Raise good answers and lower bad ones, beside how far the model has gone from a frozen reference.

    How far is estimated on prompts with the answers of other samples, over the whole step; they are not trained.
    """

    labels: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("reference",)
    mismatched: ClassVar[bool] = True
    learning_rate_factor: ClassVar[float] = 0.05  # with SFT's own, preferences are learned by heart

    beta: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """How much a step away from the reference counts."""
    desirable_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of good answers: raise it where they are few."""
    undesirable_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of bad answers: raise it where they are few."""

    def compares_samples(self) -> bool:
        """The distance from the reference is a mean over the step."""
        return True

    def count(self, batch: Batch) -> "torch.Tensor":
        """The number of samples."""
        return (_sequences.branches(batch) == 0).sum()

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """The sum of w * (1 - sigmoid(s * (reward - beta * KL))): s is 1 for good answers and -1 for bad ones."""
        assert batch.reference is not None, "the trainer gives it"
        own = _sequences.branches(batch) == 0
        ratios = _sequences.sums(scores.logps - batch.reference, batch)  # [S]
        distance = ratios[~own].detach().mean().clamp(min=0)  # KL(policy, reference), which is never negative
        good, rewards = batch.label[own] == 1, self.beta * ratios[own]  # [M] for M samples
        behind = (rewards - self.beta * distance) * (1 - 2 * good.float())
        weights = self.undesirable_weight + (self.desirable_weight - self.undesirable_weight) * good
        reported = {"kl": (distance, 1), "accuracy": ordered(rewards[good], rewards[~good])}
        policy = _sequences.sums(scores.logps, batch)[own]
        for name, chosen in (("desirable", good), ("undesirable", ~good)):
            reported[f"rewards_{name}"] = _sequences.means(rewards[chosen])
            reported[f"logps_{name}"] = _sequences.means(policy[chosen])
        return LossSum((weights * behind.sigmoid()).sum(), reported)


def ordered(good: "torch.Tensor", bad: "torch.Tensor") -> tuple["torch.Tensor", int]:
    """How many pairs of a good and a bad one have the greater number at the good one, and how many pairs there are."""
    import torch

    return torch.searchsorted(bad.detach().sort().values, good.detach()).sum(), len(good) * len(bad)
