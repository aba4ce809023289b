"""LOMO (arXiv 2306.09782): SGD without state, made for updates in the backward pass."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.seams import Optimizer

if TYPE_CHECKING:
    import torch


class Lomo(Optimizer):
    """No state at all; with train.release_gradients=true no more than one gradient at a time either."""

    learning_rate_factor: ClassVar[float] = 1000.0  # as of sgd

    clip_grad_value: Annotated[float, Field(gt=0)] | None = None
    """Largest size of a gradient's values: what can be clipped in the backward pass. None: any."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """LOMO over the trainable parameters."""
        from tunesmith.optimizers._groups import parameter_groups
        from tunesmith.optimizers._lomo import Stateless

        return Stateless(parameter_groups(self, model, factors), lr=self.rate(), clip_grad_value=self.clip_grad_value)

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """Nothing."""
        return 0
