"""Direct preference optimisation (arXiv 2305.18290)."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.objectives import _sequences
from tunesmith.seams import Objective
from tunesmith.types import Batch, LossSum, Scores

if TYPE_CHECKING:
    import torch


class DPO(Objective):
    """Prefer the chosen answer to the rejected one, more than a frozen reference does."""

    branches: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    needs: ClassVar[tuple[str, ...]] = ("reference",)

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How much a step away from the reference counts."""

    def count(self, batch: Batch) -> "torch.Tensor":
        """The number of pairs."""
        return _sequences.num_pairs(batch)

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """-log sigmoid(beta * margin), the margin being how much more the answers' log-ratios differ."""
        from torch.nn.functional import logsigmoid

        assert batch.reference is not None, "the trainer gives it"
        policy = _sequences.sums(scores.logps, batch)
        rewards = self.beta * (policy - _sequences.sums(batch.reference, batch))  # [S]
        better, worse = _sequences.pairs(batch)
        margins = rewards[better] - rewards[worse]  # [P]
        return LossSum(-logsigmoid(margins).sum(), metrics(policy, rewards, better, worse))


def metrics(
    policy: "torch.Tensor", rewards: "torch.Tensor", better: "torch.Tensor", worse: "torch.Tensor"
) -> dict[str, tuple["torch.Tensor", int]]:
    """What is reported of pairs: rewards, margins, accuracy, log-probabilities of both sides."""
    margins = rewards[better] - rewards[worse]
    return {
        "rewards_chosen": _sequences.means(rewards[better]),
        "rewards_rejected": _sequences.means(rewards[worse]),
        "margins": _sequences.means(margins),
        "accuracy": _sequences.means((margins > 0).float()),
        "logps_chosen": _sequences.means(policy[better]),
        "logps_rejected": _sequences.means(policy[worse]),
    }
