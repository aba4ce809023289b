"""What our own optimizers share: the walk over the parameters, plain state that a checkpoint can hold, and AdamW."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

MOST_VALUES = 2**24  # in the parameters that are updated by one call: what is made on the way is as large


class Ruled(torch.optim.Optimizer):
    """An optimizer whose rule is its `update`; counts are numbers, and all else in its state is tensors.

    Every parameter counts its own steps, so that parameters may be updated one at a time in the backward pass. Ranks
    that have the same gradients make the same steps.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, **options: Any) -> None:
        super().__init__(groups, {"lr": lr, **options})
        every = (parameter for group in self.param_groups for parameter in group["params"])
        self.number_of = {parameter: number for number, parameter in enumerate(every)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the trainer has no closure
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for some in _together([parameter for parameter in group["params"] if parameter.grad is not None]):
                gradients: list[Any] = [parameter.grad for parameter in some]
                self.update(some, gradients, group)

    def update(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update some parameters of a group by their gradients."""
        raise NotImplementedError

    def counted(self, parameters: Sequence[torch.Tensor]) -> list[int]:
        """The number of the step that each parameter makes now; its first is 1."""
        for parameter in parameters:
            self.state[parameter]["step"] = self.state[parameter].get("step", 0) + 1
        return [self.state[parameter]["step"] for parameter in parameters]

    def zeros(self, name: str, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """A tensor of the state for each parameter, which is of its shape and begins with zeros."""
        return [self.tensor(name, parameter, parameter.shape) for parameter in parameters]

    def tensor(self, name: str, parameter: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A tensor of the state of one parameter, of any shape, that begins with zeros."""
        state = self.state[parameter]
        if name not in state:
            state[name] = parameter.new_zeros(tuple(shape))
        return state[name]

    def adamw(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update by AdamW (arXiv 1711.05101), with the betas and eps of the group."""
        means, squares = self.zeros("exp_avg", parameters), self.zeros("exp_avg_sq", parameters)
        decay(parameters, group)
        steps = self.counted(parameters)
        torch._foreach_add_(parameters, adam_directions(means, squares, gradients, steps, group), alpha=-group["lr"])


def decay(parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
    """Shrink weights by learning rate times decay."""
    if group["weight_decay"]:
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])


def adam_directions(
    means: list[torch.Tensor],
    squares: list[torch.Tensor],
    gradients: list[torch.Tensor],
    steps: Sequence[int],
    group: dict[str, Any],
) -> list[torch.Tensor]:
    """Adam's directions (arXiv 1412.6980) after gradients have joined the running means, which are changed in place."""
    first, second = group["betas"]
    torch._foreach_lerp_(means, gradients, 1 - first)
    torch._foreach_mul_(squares, second)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
    below = torch._foreach_sqrt(squares)
    torch._foreach_div_(below, [math.sqrt(1 - second**step) for step in steps])
    torch._foreach_add_(below, group["eps"])
    torch._foreach_mul_(below, [1 - first**step for step in steps])
    return list(torch._foreach_div(means, below))


def _together(parameters: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Parameters in runs of at most MOST_VALUES values, or of one parameter."""
    some: list[torch.Tensor] = []
    values = 0
    for parameter in parameters:
        if some and values + parameter.numel() > MOST_VALUES:
            yield some
            some, values = [], 0
        some.append(parameter)
        values += parameter.numel()
    if some:
        yield some
