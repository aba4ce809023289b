"""AdamW (arXiv 1711.05101), with no decay on vectors (biases and norms)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.seams import Optimizer

if TYPE_CHECKING:
    import torch

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Optimizer):
    """torch's fused AdamW."""

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second mean."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """AdamW over the trainable parameters."""
        import torch

        from tunesmith.optimizers._groups import parameter_groups

        groups = parameter_groups(self, model, factors)
        return torch.optim.AdamW(groups, lr=self.rate(), betas=self.betas, eps=self.epsilon, fused=True)

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """Two means, and a count in float32."""
        return 2 * parameter.nbytes + 4
