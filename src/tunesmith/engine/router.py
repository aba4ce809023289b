"""The load-balancing loss of a mixture of experts (arXiv 2101.03961, equations 4 to 6), by transformers' own function.

It is made of all tokens of a micro-batch, none of which is padding here. It is no sum over tokens, so that of a step is
the mean of its micro-batches', each weighed by the units (tokens, pairs) that it has.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from tunesmith.engine.compat import routers_of
from tunesmith.engine.model import base_of
from tunesmith.errors import RecipeError
from tunesmith.types import Batch, LossSum, Scores

NAME = "router_aux_loss"
OWN = "load_balancing_loss_func"  # what transformers calls it in each family's module


@dataclass(frozen=True)
class Routed:
    """A scorer that also says how evenly a model's routers share out the tokens: `Scores.extra`."""

    scorer: Callable[..., Scores]
    routers: tuple[torch.nn.Module, ...]
    place: int  # of the logits in what a router gives
    top_k: int
    balance: Any

    @classmethod
    def of(cls, scorer: Callable[..., Scores], model: Any, coefficient: float) -> "Routed":
        """Beside a scorer of a model. Raises RecipeError when it has no routers."""
        base = base_of(model)
        balance = getattr(sys.modules[type(base).__module__], OWN, None)
        routers, place = routers_of(base)
        if balance is None or not routers:
            raise RecipeError(
                f"train.router_aux_loss_coef: {coefficient} cannot be had, since transformers has no balance loss for "
                f"{type(base).__name__}: leave it out"
            )
        return cls(scorer, routers, place, base.config.num_experts_per_tok, balance)

    def __call__(self, model: torch.nn.Module, batch: Batch, **options: Any) -> Scores:
        """The scores of a batch, with the balance loss of its tokens."""
        caught: list[torch.Tensor] = []

        def catch(module: Any, args: Any, output: Any) -> None:
            caught.append((output[self.place] if isinstance(output, tuple) else output).flatten(0, -2))

        handles = [one.register_forward_hook(catch) for one in self.routers]
        try:
            scores = self.scorer(model, batch, **options)
        finally:
            for handle in handles:
                handle.remove()
        return replace(scores, extra={NAME: self.balance(tuple(caught), caught[0].shape[-1], self.top_k)})


def balanced(summed: LossSum, scores: Scores, units: torch.Tensor, coefficient: float) -> LossSum:
    """A loss with the balance loss times its weight and the units of the batch, which the trainer divides by."""
    found = scores.extra[NAME] * units
    metrics = {**summed.metrics, NAME: (found.detach(), units)}
    return replace(summed, total=summed.total + coefficient * found, metrics=metrics)
