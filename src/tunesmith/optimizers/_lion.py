"""Lion's update (arXiv 2302.06675, Algorithm 2)."""

from typing import Any

import torch

from tunesmith.optimizers._ruled import Ruled, decay


class SignOfMean(Ruled):
    """Moves by the sign of the mean of gradients with the new one in it."""

    def update(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update some parameters of a group by their gradients."""
        in_step, in_mean = group["betas"]
        means = self.zeros("exp_avg", parameters)
        decay(parameters, group)
        signs = torch._foreach_lerp(means, gradients, 1 - in_step)
        torch._foreach_sign_(signs)
        torch._foreach_add_(parameters, signs, alpha=-group["lr"])
        torch._foreach_lerp_(means, gradients, 1 - in_mean)
