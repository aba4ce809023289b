"""Gradients that are dropped as soon as they are used: a weight is updated in the backward pass that needs it no more.

Only one gradient is then held at a time. The optimizer is the ordinary one with its ordinary state, so checkpoints are
too; what it is shown of its parameters is one at a time.
"""

import torch


class ReleasedGradients:
    """Steps an optimizer for each parameter when its gradient is whole, and keeps the norms of the gradients."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.norms: list[torch.Tensor] = []  # of the gradients of this step
        self.group_of = {
            parameter: number for number, group in enumerate(optimizer.param_groups) for parameter in group["params"]
        }
        self.handles = [one.register_post_accumulate_grad_hook(self.update) for one in self.group_of]

    @torch.no_grad()
    def update(self, parameter: torch.Tensor) -> None:
        """Update one parameter by its gradient, with its group's options of this step, and drop the gradient.

        Autograd calls it when the last use of the parameter has been differentiated, a tied one's too.
        """
        assert parameter.grad is not None, "accumulated just now"
        self.norms.append(torch.linalg.vector_norm(parameter.grad))
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [groups[self.group_of[parameter]] | {"params": [parameter]}]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
        parameter.grad = None

    def end(self) -> None:
        """Update nothing any more: gradients are made for another reason than a step."""
        for handle in self.handles:
            handle.remove()

    def take_norm(self) -> torch.Tensor:
        """The norm of all gradients of the step, which is over: a scalar."""
        norms, self.norms = self.norms, []
        return torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))
