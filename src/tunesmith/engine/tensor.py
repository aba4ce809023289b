"""Each layer's products in parts on several processes (tensor parallelism), by torch's own `parallelize_module`.

A model says in its config how its layers are cut (`base_model_tp_plan` of transformers): query, key, value, gate and up
projections by their outputs, of which each process then has some heads or features, and the projections that follow by
their inputs, whose products are summed. Embeddings, norms and head lie whole on every process, and so the fused head
and packed attention work as ever. All processes have the same rows and make the same loss.
"""

import re
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tunesmith.engine import ranks
from tunesmith.engine.model import base_of
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe

STYLES = ("colwise", "rowwise", "replicated_with_grad_allreduce")  # of transformers' plans, that are known here


def wanted(recipe: Recipe) -> bool:
    """Whether the layers of a recipe's model are cut for the processes of this run."""
    return recipe.parallel.tensor > 1 and ranks.number() > 1


def cut(model: Any, recipe: Recipe, device: str) -> list[str]:
    """Cut the layers of a loaded model in place, and move it to a device; what is to be said.

    Raises:
        RecipeError: the number of processes is another one, or the model's layers are not cut so.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    number, base = recipe.parallel.tensor, base_of(model)
    option = f"parallel.tensor={number}"
    if ranks.number() != number:
        raise RecipeError(f"{option} is for as many processes, and these are {ranks.number()}: start {number}")
    plan = plan_of(base, number, option)
    styles = {"colwise": ColwiseParallel(), "rowwise": RowwiseParallel()}
    mesh = init_device_mesh(device, (number,), mesh_dim_names=("tensor",))
    model.to(device)
    parallelize_module(model, mesh, {name: styles[style] for name, style in plan.items() if style in styles})
    for name, style in plan.items():
        if style not in styles:
            for one in model.get_submodule(name).parameters():
                one.register_hook(_summed)
    return [f"parallel: each layer's products are cut for {number} processes"]


def step_apart(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer update weights one by one where some lie in parts and others whole: no kernel takes both."""
    mixed = [
        group for group in optimizer.param_groups if len({isinstance(one, DTensor) for one in group["params"]}) > 1
    ]

    def apart(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:  # others than before, where a state was loaded
            group["fused"], group["foreach"] = False, False

    if mixed:
        optimizer.register_step_pre_hook(apart)


def _summed(gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of a weight that each process meets its own heads with."""
    total = gradient.contiguous()
    torch.distributed.all_reduce(total)
    return total


def plan_of(base: Any, number: int, option: str) -> dict[str, str]:
    """How each module is cut, by its name in the whole model. Raises RecipeError where that is not known here."""
    name, text = type(base).__name__, base.config.get_text_config()
    body = base.get_decoder()
    said = getattr(body.config, "base_model_tp_plan", None) or {}
    prefix = next(place for place, module in base.named_modules() if module is body)
    unknown = sorted({style for style in said.values() if style not in STYLES})
    if not said or unknown:
        how = f"in ways that are not known here ({', '.join(unknown)})" if unknown else "in no way that it says"
        raise RecipeError(f"{option}: {name} is cut {how}: say strategy=fsdp")
    for what in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        size = getattr(text, what, None)
        if size is not None and size % number:
            raise RecipeError(f"{option}: {what} of {name} is {size}: say a number that divides it, or strategy=fsdp")
    found = {}
    for place, _ in body.named_modules():
        style = said.get(re.sub(r"(?<=\.)\d+(?=\.)", "*", place))
        if style is not None:
            found[f"{prefix}.{place}"] = style
    return found
