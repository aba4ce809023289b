"""Odds ratio preference optimisation: fine-tuning and preference in one stage (arXiv 2403.07691)."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.objectives import _preference_losses, _sequences
from tunesmith.seams import Objective
from tunesmith.types import Batch, LossSum, Scores

if TYPE_CHECKING:
    import torch

CERTAIN = -1e-6  # log-probability per token of an answer that is certain: its odds are infinite


class ORPO(Objective):
    """Make the chosen answer likely, and its odds greater than the rejected one's; without a reference."""

    branches: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    learning_rate_factor: ClassVar[float] = 0.25  # half of it is SFT

    beta: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """Weight of the odds ratio beside the likelihood: the paper's lambda."""

    def count(self, batch: Batch) -> "torch.Tensor":
        """The number of pairs."""
        return _sequences.num_pairs(batch)

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """-log p - beta * log sigmoid(log of the odds ratio), of probabilities per token (equations 6 and 7)."""
        pairs = _sequences.pairs(batch)  # [2, P]
        policy, lengths = _sequences.sums(scores.logps, batch)[pairs], _sequences.lengths(batch)[pairs]
        odds = log_odds((policy / lengths).clamp(max=CERTAIN))
        ratios = odds[0] - odds[1]
        likelihood = _preference_losses.likelihood(policy, lengths)
        total = likelihood.sum() - self.beta * _preference_losses.logsigmoid(ratios).sum()
        reported = _preference_losses.metrics(policy, self.beta * policy / lengths)
        reported |= {"nll_chosen": _sequences.means(likelihood), "log_odds_ratio": _sequences.means(ratios)}
        return LossSum(total, reported)


def log_odds(logps: "torch.Tensor") -> "torch.Tensor":
    """log(p / (1 - p)) of log p below 0."""
    return logps - (-logps.expm1()).log()
