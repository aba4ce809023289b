"""Stochastic gradient descent with momentum."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import model_validator

from tunesmith.optimizers.adamw import Beta
from tunesmith.seams import Optimizer

if TYPE_CHECKING:
    import torch


class SGD(Optimizer):
    """torch's fused SGD. Its decay is added to the gradient, and so has momentum too."""

    learning_rate_factor: ClassVar[float] = (
        1000.0  # steps are as long as gradients, not as the root of the weights' number
    )

    momentum: Beta = 0.9
    """Decay of the running sum of gradients; 0: no sum, and no state."""
    nesterov: bool = False
    """Look ahead by the momentum."""

    @model_validator(mode="after")
    def _looks_ahead_by_something(self) -> "SGD":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead by the momentum, which is 0: set momentum, or leave nesterov out")
        return self

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """SGD over the trainable parameters."""
        import torch

        from tunesmith.optimizers._groups import parameter_groups

        groups = parameter_groups(self, model, factors)
        return torch.optim.SGD(groups, lr=self.rate(), momentum=self.momentum, nesterov=self.nesterov, fused=True)

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """One sum, where there is momentum."""
        return parameter.nbytes if self.momentum else 0
