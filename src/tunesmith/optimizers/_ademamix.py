"""AdEMAMix's update (arXiv 2409.03137, Algorithm 1)."""

import math
from typing import Any

import torch

from tunesmith.optimizers._ruled import Ruled, decay


class TwoMeans(Ruled):
    """Adam with a slow mean beside the fast one."""

    def update(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update some parameters of a group by their gradients."""
        first, second, third = group["betas"]
        decay(parameters, group)
        fast, squares, slow = (self.zeros(name, parameters) for name in ("exp_avg", "exp_avg_sq", "exp_avg_slow"))
        torch._foreach_lerp_(fast, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        each = zip(parameters, gradients, fast, squares, slow, self.counted(parameters), strict=True)
        for parameter, gradient, quick, square, long, step in each:
            done = min(1.0, step / group["warmup_steps"]) if group["warmup_steps"] else 1.0
            long.lerp_(gradient, 1 - slow_decay(first, third, done))
            below = square.sqrt().div_(math.sqrt(1 - second**step)).add_(group["eps"])
            above = (quick / (1 - first**step)).add_(long, alpha=done * group["alpha"])
            parameter.addcdiv_(above, below, value=-group["lr"])


def slow_decay(start: float, end: float, done: float) -> float:
    """The slow mean's decay after a share of the warm-up: log-linear in half-lives from the fast one's to its own."""
    if start == 0 or done == 1:
        return end
    low, high = math.log(start), math.log(end)
    return min(end, math.exp(low * high / ((1 - done) * high + done * low)))
