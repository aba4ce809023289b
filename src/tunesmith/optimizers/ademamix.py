"""AdEMAMix (arXiv 2409.03137): Adam with a second, slow mean of the gradients."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.optimizers.adamw import Beta
from tunesmith.seams import Companion, Optimizer

if TYPE_CHECKING:
    import torch


class AdEMAMix(Optimizer):
    """Old gradients keep a say: three values of state for each weight."""

    betas: tuple[Beta, Beta, Annotated[float, Field(gt=0, lt=1)]] = (0.9, 0.999, 0.9999)
    """Decay of the fast mean, of the mean of squares, and of the slow mean at its end."""
    alpha: Annotated[float, Field(ge=0)] = 5.0
    """Weight of the slow mean in the step."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps in which the slow mean gets its decay and its weight. None: all of the run, as in the paper."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the mean of squares."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """AdEMAMix over the trainable parameters."""
        from tunesmith.optimizers._ademamix import TwoMeans
        from tunesmith.optimizers._groups import parameter_groups

        options = self.model_dump(include={"betas", "alpha"})
        groups = parameter_groups(self, model, factors)
        return TwoMeans(groups, lr=self.rate(), eps=self.epsilon, warmup_steps=self.warmup_steps or 0, **options)

    def companion(self, built: "torch.optim.Optimizer", model: Any, num_steps: int) -> Companion | None:
        """None; the length of the run becomes that of the warm-up, where the recipe says no other."""
        for group in built.param_groups:
            group["warmup_steps"] = num_steps if self.warmup_steps is None else self.warmup_steps
        return None

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """Three means."""
        return 3 * parameter.nbytes
