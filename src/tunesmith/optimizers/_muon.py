"""Muon's update (kellerjordan.github.io/posts/muon; arXiv 2502.16982)."""

from typing import Any

import torch

from tunesmith.optimizers._ruled import Ruled, decay

QUINTIC = (3.4445, -4.7750, 2.0315)  # of Keller Jordan: singular values go to about 1, whatever they were
TINY = 1e-7


class MuonAndAdamW(Ruled):
    """Muon for groups that say "matrices", AdamW for others; one object for schedulers and checkpoints."""

    def update(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update some parameters of a group by their gradients."""
        if not group["matrices"]:
            self.adamw(parameters, gradients, group)
            return
        decay(parameters, group)
        means = self.zeros("momentum_buffer", parameters)
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        for parameter, gradient, mean in zip(parameters, gradients, means, strict=True):
            ahead = gradient.lerp(mean, group["momentum"]) if group["nesterov"] else mean
            size = _size(parameter.shape[-2], parameter.shape[-1], group["adjust_lr_fn"])
            parameter.add_(orthogonal(ahead, group["ns_steps"]), alpha=-group["lr"] * size)


def _size(rows: int, columns: int, adjust_lr_fn: str) -> float:
    if adjust_lr_fn == "original":
        return max(1, rows / columns) ** 0.5
    return 0.2 * max(rows, columns) ** 0.5  # AdamW's updates have a root mean square of about 0.2


def orthogonal(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """About the nearest orthogonal matrix, by Newton-Schulz in bfloat16; [..., m, n], a stack is one by one."""
    a, b, c = QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    wide = (matrix.mT if tall else matrix).bfloat16()
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=TINY)
    for _ in range(steps):
        gram = wide @ wide.mT  # [..., m, m], the shorter side
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide.mT if tall else wide).to(matrix.dtype)
