"""Schedule-free AdamW's update (arXiv 2405.15682, Algorithm 1): z the fast weights, x their mean, y between both."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tunesmith.optimizers._ruled import Ruled
from tunesmith.seams import Companion


class AveragedAdamW(Ruled):
    """The parameters are y, z is in the state, and x follows from both."""

    def update(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update some parameters of a group by their gradients."""
        beta, second = group["betas"]
        squares = self.zeros("exp_avg_sq", parameters)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        each = zip(parameters, gradients, squares, self.counted(parameters), strict=True)
        for y, gradient, square, step in each:
            state = self.state[y]
            if step == 1:
                state["z"] = y.detach().clone(memory_format=torch.preserve_format)
            rate = group["lr"] * math.sqrt(1 - second**step)
            state["weights"] = state.get("weights", 0.0) + rate**2  # of all z so far in the mean
            share = rate**2 / state["weights"] if rate else 0.0
            direction = (gradient / square.sqrt().add_(group["eps"])).add_(y, alpha=group["weight_decay"])
            y.lerp_(state["z"], share).add_(direction, alpha=rate * (beta * (1 - share) - 1))
            state["z"].sub_(direction, alpha=rate)


class Averaged(Companion):
    """Has the model take the mean of its weights where it is evaluated or saved for good."""

    def __init__(self, optimizer: AveragedAdamW) -> None:
        self.optimizer = optimizer

    @contextmanager
    def settled(self) -> Iterator[None]:
        """A block in which every parameter is x; y is kept beside it, as x and z would not give it back exactly."""
        kept: dict[torch.Tensor, torch.Tensor] = {}
        with torch.no_grad():
            for group in self.optimizer.param_groups:
                for y in group["params"]:
                    if "z" in self.optimizer.state.get(y, {}):
                        kept[y] = y.detach().clone()
                        y.lerp_(self.optimizer.state[y]["z"], 1 - 1 / group["betas"][0])
        try:
            yield
        finally:
            with torch.no_grad():
                for y, before in kept.items():
                    y.copy_(before)
