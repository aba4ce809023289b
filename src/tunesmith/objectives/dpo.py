"""Direct preference optimisation (arXiv 2305.18290) and the losses that were made of it."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from tunesmith.errors import near
from tunesmith.objectives import _preference_losses, _sequences
from tunesmith.objectives._preference_losses import LOSSES, Compared, Divergence, LossName
from tunesmith.seams import Objective
from tunesmith.types import Batch, LossSum, Scores

if TYPE_CHECKING:
    import torch

Weight = Annotated[float, Field(gt=0, le=1000)]


class DPO(Objective):
    """Prefer the chosen answer to the rejected one, more than a frozen reference does."""

    branches: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    needs: ClassVar[tuple[str, ...]] = ("reference",)
    learning_rate_factor: ClassVar[float] = 0.05  # with SFT's own, preferences are learned by heart

    loss_type: LossName | Annotated[dict[LossName, Weight], Field(min_length=1)] = "sigmoid"
    """What is made of a pair, by its name; or several with their weights: {sigmoid: 0.8, bco_pair: 0.2}."""
    beta: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """How much a step away from the reference counts; for ipo and sppo_hard, how soon a margin is large enough."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """The share of pairs that are taken to be the wrong way round (sigmoid, robust, exo_pair, aot, aot_unpaired)."""
    sft_weight: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Weight of the chosen answer's own negative log-likelihood per token, beside the preference."""
    length_normalised: bool = False
    """Compare means over an answer's tokens, not sums; ipo always does."""
    ld_alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How much the tokens count by which an answer is longer than the other one of its pair (LD-DPO)."""
    f_divergence: Divergence = "reverse_kl"
    """How the distance from the reference is measured (f-DPO), for losses of a difference of rewards."""
    f_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Which alpha_divergence: towards 0 it is reverse_kl, towards 1 forward_kl."""
    discopop_tau: Annotated[float, Field(gt=0, le=1000)] = 0.05
    """How wide the margins are in which discopop turns from logistic to exponential."""

    @field_validator("loss_type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
        for name in names:
            if name not in LOSSES:
                raise ValueError(f"there is no loss {name!r}. {near(str(name), LOSSES)}")
        return value

    @model_validator(mode="after")
    def _options_of_the_losses(self) -> "DPO":
        names, losses = list(self.weights()), " and ".join(self.weights())
        single = [name for name in names if name not in _preference_losses.OF_DIFFERENCES]
        if self.f_divergence != "reverse_kl" and single:
            raise ValueError(
                f"f_divergence is of a difference of rewards, and {' and '.join(single)} is not one: use it with "
                f"{', '.join(_preference_losses.OF_DIFFERENCES)}"
            )
        if self.f_divergence != "alpha_divergence" and self.f_alpha != 0.5:
            raise ValueError(f"f_alpha changes nothing of {self.f_divergence}: set f_divergence=alpha_divergence")
        if self.label_smoothing and not set(names) & set(_preference_losses.SMOOTHED):
            raise ValueError(
                f"label_smoothing changes nothing of {losses}: it is for {', '.join(_preference_losses.SMOOTHED)}"
            )
        if "exo_pair" in names and not self.label_smoothing:
            raise ValueError("label_smoothing must be greater than 0 for exo_pair, as in its paper: 0.001")
        if self.discopop_tau != 0.05 and "discopop" not in names:
            raise ValueError(f"discopop_tau changes nothing of {losses}: set loss_type=discopop")
        if self.length_normalised and names == ["ipo"]:
            raise ValueError("length_normalised changes nothing of ipo, which is per token: leave it out")
        return self

    def weights(self) -> dict[str, float]:
        """The losses and their weights."""
        return {self.loss_type: 1.0} if isinstance(self.loss_type, str) else dict(self.loss_type.items())

    def compares_samples(self) -> bool:
        """Whether a loss is of a mean or an order of pairs."""
        return any(name in _preference_losses.OF_SEVERAL_PAIRS for name in self.weights())

    def count(self, batch: Batch) -> "torch.Tensor":
        """The number of pairs."""
        return _sequences.num_pairs(batch)

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """The weighted losses of the log-ratios of both answers, and the likelihood of the better one."""
        assert batch.reference is not None, "the trainer gives it"
        pairs = _sequences.pairs(batch)  # [2, P]
        lengths = _sequences.lengths(batch)[pairs]
        policy, ratios = (
            _sequences.sums_of_pairs(values, batch, pairs, self.ld_alpha)
            for values in (scores.logps, scores.logps - batch.reference)
        )
        measured = _preference_losses.diverging(ratios, self.f_divergence, self.f_alpha)
        compared = Compared(policy, ratios, measured, lengths, self.beta, self.label_smoothing, self.discopop_tau)
        if self.length_normalised:
            compared = compared.per_token()
        found = {name: weight * LOSSES[name](compared).sum() for name, weight in self.weights().items()}
        if self.sft_weight:
            whole = _sequences.sums(scores.logps, batch)[pairs]
            found["sft"] = self.sft_weight * _preference_losses.likelihood(whole, lengths).sum()
        parts = {f"loss_{name}": (part.detach(), pairs.shape[1]) for name, part in found.items()}
        reported = _preference_losses.metrics(policy, self.beta * compared.scores) | (parts if len(parts) > 1 else {})
        return LossSum(sum(found.values()), reported)  # type: ignore[arg-type]
