"""Lion (arXiv 2302.06675): the sign of a mean of gradients."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from tunesmith.optimizers.adamw import Beta
from tunesmith.seams import Optimizer

if TYPE_CHECKING:
    import torch


class Lion(Optimizer):
    """Steps of one length in every weight; one mean as state."""

    learning_rate_factor: ClassVar[float] = (
        0.2  # the paper: 3 to 10 times smaller than AdamW's, the decay as much larger
    )

    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Share of the mean in the step, and decay of the mean."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """Lion over the trainable parameters."""
        from tunesmith.optimizers._groups import parameter_groups
        from tunesmith.optimizers._lion import SignOfMean

        return SignOfMean(parameter_groups(self, model, factors), lr=self.rate(), betas=self.betas)

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """One mean."""
        return parameter.nbytes
