"""The losses of pairs, each of its paper: from the log-probabilities of two answers to a number for each pair.

Letters: P pairs. Of what is [2, P], the first row is of the better answers and the second one of the worse ones.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.objectives import _sequences

if TYPE_CHECKING:
    import torch

LossName = Literal[
    "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop",
]  # fmt: skip
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

OF_DIFFERENCES = (
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "discopop",
)  # in which what f-DPO leaves open cancels
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")  # those that label_smoothing changes
OF_SEVERAL_PAIRS = ("bco_pair", "aot", "aot_unpaired")  # those of a mean or an order of pairs

LARGEST_EXPONENT = 80.0  # exp of more than 88 is infinite in float32


@dataclass(frozen=True, slots=True)
class Compared:
    """What the loss of pairs is made from."""

    policy: "torch.Tensor"  # [2, P] log-probability of each answer
    ratios: "torch.Tensor"  # [2, P] by how much that is more than the reference's
    scores: "torch.Tensor"  # [2, P] what of the ratios is compared: themselves, or f' of them
    lengths: "torch.Tensor"  # [2, P] learned tokens of each answer, by their weights
    beta: float
    label_smoothing: float = 0.0
    discopop_tau: float = 0.05

    @property
    def margins(self) -> "torch.Tensor":
        """By how much the reward of the better answer is greater: [P]."""
        return self.beta * (self.scores[0] - self.scores[1])

    def per_token(self) -> "Compared":
        """The same of answers whose numbers are means over their tokens (arXiv 2411.15124)."""
        values: dict[str, Any] = {name: getattr(self, name) / self.lengths for name in ("policy", "ratios", "scores")}
        return replace(self, **values, lengths=self.lengths / self.lengths)


def sigmoid(pairs: Compared) -> "torch.Tensor":
    """DPO (equation 7 of arXiv 2305.18290); with label smoothing, its conservative form (Mitchell 2023)."""
    return _smoothed(pairs, pairs.margins)


def hinge(pairs: Compared) -> "torch.Tensor":
    """The margin up to 1 (SLiC, arXiv 2305.10425, in the form of arXiv 2309.06657)."""
    return (1 - pairs.margins).relu()


def ipo(pairs: Compared) -> "torch.Tensor":
    """The squared distance of the margin from 1/(2 beta) (equation 17 of arXiv 2310.12036), per token.

    The paper does not say it of tokens; its authors confirmed it (as trl and their own code have it).
    """
    scores = pairs.per_token().scores
    return (scores[0] - scores[1] - 1 / (2 * pairs.beta)).square()


def robust(pairs: Compared) -> "torch.Tensor":
    """Unbiased where a share of the labels is swapped (arXiv 2403.00409)."""
    swapped = pairs.label_smoothing
    right, wrong = -logsigmoid(pairs.margins), -logsigmoid(-pairs.margins)
    return ((1 - swapped) * right - swapped * wrong) / (1 - 2 * swapped)


def exo_pair(pairs: Compared) -> "torch.Tensor":
    """The reverse divergence from the smoothed labels (equation 16 of arXiv 2402.00856)."""
    wrong = pairs.label_smoothing
    return sum(
        (sign * pairs.margins).sigmoid() * (logsigmoid(sign * pairs.margins) - math.log(share))
        for sign, share in ((1, 1 - wrong), (-1, wrong))
    )  # type: ignore[return-value]


def nca_pair(pairs: Compared) -> "torch.Tensor":
    """Noise contrastive alignment, of absolute likelihoods (arXiv 2402.05369, of two answers)."""
    rewards = pairs.beta * pairs.ratios  # [2, P]
    return -logsigmoid(rewards[0]) - 0.5 * logsigmoid(-rewards).sum(0)


def bco_pair(pairs: Compared) -> "torch.Tensor":
    """Good from bad, told apart at the mean reward of both (arXiv 2404.04656).

    The paper follows the mean from step to step; here it is that of the step.
    """
    rewards = pairs.beta * pairs.ratios
    rewards = rewards - rewards.detach().mean()
    return -logsigmoid(rewards[0]) - logsigmoid(-rewards[1])


def sppo_hard(pairs: Compared) -> "torch.Tensor":
    """Self-play, where the better answer wins for sure (equation 4.7 of arXiv 2405.00675)."""
    half = 0.5 / pairs.beta
    return (pairs.ratios[0] - half).square() + (pairs.ratios[1] + half).square()


def aot(pairs: Compared) -> "torch.Tensor":
    """The order of all margins above the order of the reference's (paired, arXiv 2406.05882)."""
    reference = pairs.policy - pairs.ratios  # [2, P]
    own, other = (values[0] - values[1] for values in (pairs.policy, reference))
    return _smoothed(pairs, pairs.beta * (own.sort().values - other.sort().values))


def aot_unpaired(pairs: Compared) -> "torch.Tensor":
    """The order of all better answers above the order of all worse ones (unpaired, arXiv 2406.05882)."""
    ordered = pairs.ratios.sort(dim=1).values  # [2, P]
    return _smoothed(pairs, pairs.beta * (ordered[0] - ordered[1]))


def apo_zero(pairs: Compared) -> "torch.Tensor":
    """The better answer up and the worse one down (equation 7 of arXiv 2408.06266)."""
    rewards = pairs.beta * pairs.ratios
    return (-rewards[0]).sigmoid() + rewards[1].sigmoid()


def apo_down(pairs: Compared) -> "torch.Tensor":
    """Both down and the worse one more, for a model better than its data (equation 8 of arXiv 2408.06266)."""
    rewards = pairs.beta * pairs.ratios
    return rewards[0].sigmoid() + (rewards[1] - rewards[0]).sigmoid()


def discopop(pairs: Compared) -> "torch.Tensor":
    """Logistic for small margins and exponential for large ones (equation 5 of arXiv 2406.08414)."""
    margins = pairs.margins
    bend = margins / pairs.discopop_tau
    logistic = -logsigmoid(margins) * (-bend).sigmoid()
    return logistic + (logsigmoid(bend) - margins).exp()  # the product in one exp, so that none of it is infinite


LOSSES: Mapping[str, Callable[[Compared], "torch.Tensor"]] = {
    loss.__name__: loss
    for loss in (
        sigmoid, hinge, ipo, robust, exo_pair, nca_pair, bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down,
        discopop,
    )
}  # fmt: skip


def diverging(ratios: "torch.Tensor", kind: Divergence, alpha: float) -> "torch.Tensor":
    """f'(u) of log u, with f'(1) = 0: of reverse KL, as in DPO, or of another divergence (arXiv 2309.16240)."""
    if kind == "reverse_kl":
        return ratios
    if kind == "js_divergence":
        return logsigmoid(ratios) + math.log(2)  # log(2 u / (1 + u))
    alpha = 1.0 if kind == "forward_kl" else alpha
    return -(-alpha * ratios).clamp(max=LARGEST_EXPONENT).expm1() / alpha  # (1 - u^-alpha) / alpha


def likelihood(sums: "torch.Tensor", lengths: "torch.Tensor") -> "torch.Tensor":
    """The negative log-likelihood per token of the better answer of each pair: [2, P] to [P]."""
    return -sums[0] / lengths[0]


def metrics(policy: "torch.Tensor", rewards: "torch.Tensor") -> dict[str, tuple[Any, Any]]:
    """What is reported of pairs: rewards, margins, accuracy, log-probabilities of both sides."""
    margins = rewards[0] - rewards[1]
    return {
        "rewards_chosen": _sequences.means(rewards[0]),
        "rewards_rejected": _sequences.means(rewards[1]),
        "margins": _sequences.means(margins),
        "accuracy": _sequences.means((margins > 0).float()),
        "logps_chosen": _sequences.means(policy[0]),
        "logps_rejected": _sequences.means(policy[1]),
    }


def logsigmoid(values: "torch.Tensor") -> "torch.Tensor":
    """log(1 / (1 + exp(-x))), exact for large and small x."""
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


def _smoothed(pairs: Compared, margins: "torch.Tensor") -> "torch.Tensor":
    """-log sigmoid of margins, of which a share is the wrong way round."""
    wrong = pairs.label_smoothing
    return -(1 - wrong) * logsigmoid(margins) - wrong * logsigmoid(-margins)
