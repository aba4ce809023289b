"""The updates of LOMO (arXiv 2306.09782, Algorithm 1) and AdaLomo (arXiv 2310.10195, Algorithm 1)."""

from typing import Any

import torch

from tunesmith.optimizers._ruled import Ruled, decay

TINY = 1e-30  # added to squares
LEAST_SIZE = 1e-3  # of weights that updates are relative to: matrices that begin with zeros must grow


class Stateless(Ruled):
    """Moves against the gradient."""

    def update(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update some parameters of a group by their gradients."""
        decay(parameters, group)
        torch._foreach_add_(parameters, clipped(gradients, group), alpha=-group["lr"])


class RowsAndColumns(Ruled):
    """Moves by a gradient over the root of its second moment, of which the means of rows and columns are kept."""

    def update(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update some parameters of a group by their gradients."""
        for parameter, gradient, step in zip(
            parameters, clipped(gradients, group), self.counted(parameters), strict=True
        ):
            update = gradient * self._moment(parameter, gradient, 1 - step ** group["decay_rate"]).rsqrt()
            update /= (rms(update) / group["clip_threshold"]).clamp(min=1)
            rate = group["lr"] * rms(parameter).clamp(min=LEAST_SIZE)
            parameter.mul_(1 - rate * group["weight_decay"]).sub_(update * rate)

    def _moment(self, parameter: torch.Tensor, gradient: torch.Tensor, kept: float) -> torch.Tensor:
        """The second moment of a gradient, which joins the means that are kept."""
        square = gradient.square() + TINY
        if parameter.ndim < 2:
            return self.tensor("exp_avg_sq", parameter, parameter.shape).lerp_(square, 1 - kept)
        rows = self.tensor("exp_avg_sq_row", parameter, parameter.shape[:-1]).lerp_(square.mean(-1), 1 - kept)
        columns = self.tensor("exp_avg_sq_col", parameter, parameter.shape[:-2] + parameter.shape[-1:])
        columns.lerp_(square.mean(-2), 1 - kept)
        return (rows / rows.mean(-1, keepdim=True)).unsqueeze(-1) * columns.unsqueeze(-2)


def clipped(gradients: list[torch.Tensor], group: dict[str, Any]) -> list[torch.Tensor]:
    """Gradients whose values are within the group's bound."""
    bound = group["clip_grad_value"]
    return gradients if bound is None else [gradient.clamp(-bound, bound) for gradient in gradients]


def rms(tensor: torch.Tensor) -> torch.Tensor:
    """Root mean square: a scalar."""
    return torch.linalg.vector_norm(tensor) / tensor.numel() ** 0.5
