"""Adafactor (arXiv 1804.04235): the second moment of a matrix is its means over rows and columns."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.seams import Optimizer

if TYPE_CHECKING:
    import torch


class Adafactor(Optimizer):
    """torch's Adafactor, without a first moment: steps are relative to the size of the weights."""

    learning_rate_factor: ClassVar[float] = 25.0  # it is multiplied by the weights' root mean square, about 0.04

    beta2_decay: Annotated[float, Field(le=0)] = -0.8
    """Exponent of the step in the decay of the second moment: 1 - step ** beta2_decay."""
    clip_threshold: Annotated[float, Field(ge=1)] = 1.0
    """Root mean square that an update is scaled down to, before the size of the weights comes in."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """Adafactor over the trainable parameters."""
        import torch

        from tunesmith.optimizers._groups import parameter_groups

        groups = parameter_groups(self, model, factors)
        return torch.optim.Adafactor(groups, lr=self.rate(), beta2_decay=self.beta2_decay, d=self.clip_threshold)

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """Means of rows and columns, or of every value of a vector; and a count in float32."""
        values = parameter.numel()
        if parameter.ndim >= 2:
            values = values // parameter.shape[-1] + values // parameter.shape[-2]
        return values * parameter.itemsize + 4
