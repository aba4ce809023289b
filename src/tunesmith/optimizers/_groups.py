"""The groups of parameters that optimizers share."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunesmith.errors import RecipeError
from tunesmith.seams import Optimizer

if TYPE_CHECKING:
    import torch


def parameter_groups(
    optimizer: Optimizer, model: "torch.nn.Module", factors: Mapping[str, float] = {}
) -> list[dict[str, Any]]:
    """The trainable parameters of a model in groups of one learning rate and decay; vectors have none of the latter.

    The first group is of the optimizer's own learning rate, where it has any parameter: it is the one that is logged.

    Raises:
        RecipeError: a pattern of `learning_rates` matches no trainable parameter.
    """
    assert optimizer.learning_rate is not None, "resolved before the run"
    patterns = {said: re.compile(said) for said in optimizer.learning_rates}
    groups: dict[tuple[bool, float, bool], list[Any]] = {}
    matched = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            said = next((text for text, pattern in patterns.items() if pattern.search(name)), None)
            matched.add(said)
            rate = optimizer.learning_rate * factors.get(name, 1.0) if said is None else optimizer.learning_rates[said]
            groups.setdefault((rate != optimizer.learning_rate, rate, parameter.ndim < 2), []).append(parameter)
    for pattern in patterns.keys() - matched:
        raise RecipeError(f"optimizer.learning_rates: no trained parameter has a name that {pattern!r} matches")
    return [
        {"params": params, "lr": rate, "weight_decay": 0.0 if vectors else optimizer.weight_decay}
        for (_, rate, vectors), params in sorted(groups.items(), key=lambda item: item[0])
    ]
