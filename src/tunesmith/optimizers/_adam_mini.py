"""Adam-mini's update (arXiv 2406.16793, Algorithms 1 and 3)."""

from typing import Any

import torch

from tunesmith.optimizers._ruled import Ruled, decay


class OneRateABlock(Ruled):
    """Adam whose second moment is the mean of a block's squares: `rows` of a group are a block, 0 a whole vector."""

    def update(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update some parameters of a group by their gradients."""
        first, second = group["betas"]
        decay(parameters, group)
        means = self.zeros("exp_avg", parameters)
        torch._foreach_lerp_(means, gradients, 1 - first)
        each = zip(parameters, gradients, means, self.counted(parameters), strict=True)
        for parameter, gradient, mean, step in each:
            square = mean_squares(gradient, group["rows"])
            moment = self.tensor("exp_avg_sq", parameter, square.shape).lerp_(square, 1 - second)
            below = (moment / (1 - second**step)).sqrt_().add_(group["eps"])
            if group["rows"]:
                below = below.repeat_interleave(group["rows"], -1).unsqueeze(-1)  # [..., rows, 1]
            parameter.addcdiv_(mean, below, value=-group["lr"] / (1 - first**step))


def mean_squares(gradient: torch.Tensor, rows: int) -> torch.Tensor:
    """The mean square of each block of rows of a matrix, [..., rows / block]; of a vector, a scalar."""
    square = gradient.square()
    return square.mean(-1).unflatten(-1, (-1, rows)).mean(-1) if rows else square.mean()
