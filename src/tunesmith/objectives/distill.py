"""Knowledge distillation: a student learns a teacher's probabilities of all words, and not the right word alone."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunesmith.seams import Objective
from tunesmith.types import Batch, Divergence, LossSum, Scores

if TYPE_CHECKING:
    import torch


class Distill(Objective):
    """Minimise sum(weight * (T^2 * D(teacher, student) - sft_weight * log p)), both models' logits divided by T in D.

    T^2 keeps the size of the gradients, which shrink as 1 / T^2 (arXiv 1503.02531, section 2).
    """

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """D. forward_kl: KL(teacher | student), which covers all that the teacher says. reverse_kl: KL(student | teacher),
    which keeps to what the teacher says most. jsd: between both, as jsd_weight says."""
    jsd_weight: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The teacher's weight in the mixture that jsd measures both from (beta of arXiv 2306.13649): near 0 it is like
    forward_kl, near 1 like reverse_kl."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """T. Above 1, unlikely words count more."""
    top_k: Annotated[int, Field(gt=0, le=10_000)] | None = None
    """Compare the teacher's k likeliest words, and all others as if they were one: what can be kept with the rows.
    None: all words."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """How much the likelihood of the rows' own tokens counts beside."""

    def teaching(self) -> Divergence:
        """The divergence that the options say."""
        return Divergence(self.divergence, self.jsd_weight, self.temperature, self.top_k, self.sft_weight > 0)

    def count(self, batch: Batch) -> "torch.Tensor":
        """The summed weight of the trained tokens."""
        return batch.weight.sum()

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """The weighted divergence and likelihood, and each of them alone."""
        assert scores.divergence is not None, "the scorer makes it"
        count = batch.weight.sum()
        divergence = (batch.weight * scores.divergence).sum()
        nll = -(batch.weight * scores.logps).sum()
        total = self.temperature**2 * divergence + self.sft_weight * nll
        return LossSum(total, {"divergence": (divergence.detach(), count), "nll": (nll.detach(), count)})
