"""The groups of parameters that optimizers share."""

import re
from collections.abc import Callable, Mapping
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
        RecipeError: a pattern of `learning_rates` is that of no trainable parameter.
    """
    own = optimizer.rate()
    patterns = {said: re.compile(said) for said in optimizer.learning_rates}
    groups: dict[tuple[bool, float, bool], list[Any]] = {}
    matched = set()
    shadowed: dict[str, str] = {}  # patterns that match what an earlier one takes, and that
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fitting = [text for text, pattern in patterns.items() if pattern.search(name)]
            said = fitting[0] if fitting else None
            matched.add(said)
            shadowed.update((later, fitting[0]) for later in fitting[1:])
            rate = own * factors.get(name, 1.0) if said is None else optimizer.learning_rates[said]
            groups.setdefault((rate != own, rate, parameter.ndim < 2), []).append(parameter)
    for pattern in patterns.keys() - matched:
        if pattern in shadowed:
            raise RecipeError(
                f"optimizer.learning_rates: what {pattern!r} matches is all taken by patterns before it, the last of "
                f"them {shadowed[pattern]!r}: say it before those"
            )
        raise RecipeError(f"optimizer.learning_rates: no trained parameter has a name that {pattern!r} matches")
    return [
        {"params": params, "lr": rate, "weight_decay": 0.0 if vectors else optimizer.weight_decay}
        for (_, rate, vectors), params in sorted(groups.items(), key=lambda item: item[0])
    ]


IN_A_LAYER = re.compile(r"\.\d+\.")
NO_PRODUCT = re.compile(r"embed|relative_attention_bias")  # tables that are looked up, not multiplied with


def is_hidden_matrix(name: str, parameter: "torch.Tensor", rank: int = 1) -> bool:
    """Whether a parameter is a matrix of a layer (or a stack of them, as of experts) of more than some rank.

    Embeddings, heads and vectors are not.
    """
    in_a_layer = IN_A_LAYER.search(name) is not None and NO_PRODUCT.search(name) is None
    return in_a_layer and parameter.ndim >= 2 and min(parameter.shape[-2:]) > rank


def divided_groups(
    groups: list[dict[str, Any]], model: "torch.nn.Module", key: str, value: Callable[[str, "torch.Tensor"], Any]
) -> list[dict[str, Any]]:
    """Groups in which all parameters have one value, which each has under a key; the first keeps its rate."""
    value_of = {parameter: value(name, parameter) for name, parameter in model.named_parameters()}
    found = []
    for group in groups:
        parts: dict[Any, list[Any]] = {}
        for parameter in group["params"]:
            parts.setdefault(value_of[parameter], []).append(parameter)
        found += [group | {"params": params, key: one} for one, params in parts.items()]
    return found


def head_dim(model: Any) -> int:
    """The rows of a head in the matrices of queries and keys; 1 where a module is no language model."""
    config = getattr(model, "config", None)
    if config is None:
        return 1
    config = config.get_text_config()
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
