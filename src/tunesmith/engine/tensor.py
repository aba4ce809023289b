"""Each layer's products in parts on several processes (tensor parallelism), by torch's own `parallelize_module`.

A model says in its config how its layers are cut (`base_model_tp_plan` of transformers): query, key, value, gate and up
projections by their outputs, of which each process then has some heads or features, and the projections that follow by
their inputs, whose products are summed. Embeddings, norms and head lie whole on every process, and so the fused head
and packed attention work as ever. All processes of a group have the same rows and make the same loss.

What LoRA adds to a layer lies whole on every process too, and each computes with the rows or columns that meet its
part of the layer: y = x W' + scale * (x A') B' is a part of y with a part of the outputs of W and B, and a summand of y
with a part of the inputs of W and A. So each has a summand of the gradients of A and B, as it has of the gradient of a
norm of its own heads. The trainer averages gradients of what lies whole over all processes, so each summand counts N.

Letters: N processes of a group, I and O features in and out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import all_reduce
from torch.distributed.tensor import DTensor

from tunesmith.engine import shared_out
from tunesmith.engine.layers import Compute, update_by
from tunesmith.engine.linear import Dense, Layer, linear
from tunesmith.engine.model import base_of
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

BY_OUTPUTS, BY_INPUTS, OF_HEADS = "colwise", "rowwise", "replicated_with_grad_allreduce"
STYLES = (BY_OUTPUTS, BY_INPUTS, OF_HEADS)  # of transformers' plans, that are known here


def share_out(model: Any, recipe: Recipe, device: str) -> list[str]:
    """Cut the products of a loaded and adapted model, share out its weights, each where the recipe says so.

    It is moved to the device. What is to be said of it is given back.

    Raises:
        RecipeError: the number of processes does not fit the recipe, or the model cannot be cut or shared out.
    """
    if not shared_out.is_cut(recipe) and not shared_out.wanted(recipe):
        return []
    mesh, plan, said = shared_out.mesh_of(recipe, device), {}, []
    if shared_out.is_cut(recipe):
        number = recipe.parallel.tensor
        plan = plan_of(base_of(model), number, f"parallel.tensor={number}")
        cut(model, plan, mesh["tensor"], device)
        said.append(f"parallel: each layer's products are cut for {number} processes")
    if shared_out.wanted(recipe):
        said += shared_out.share_out(model, recipe, device, mesh)
    _add_up(base_of(model), plan, mesh)
    return said


def cut(model: Any, plan: dict[str, str], mesh: "DeviceMesh", device: str) -> None:
    """Cut the layers of a model in place for the processes of a mesh, and move it to a device.

    Raises:
        RecipeError: what an adapter made of a layer cannot be cut.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    base, group = base_of(model), (mesh.get_group(), mesh.get_local_rank(), mesh.size())
    styles: dict[str, tuple[Any, Compute]]
    styles = {BY_OUTPUTS: (ColwiseParallel(), ByOutputs(*group)), BY_INPUTS: (RowwiseParallel(), ByInputs(*group))}
    model.to(device)
    cuts = {}
    for name, style in plan.items():
        if style in styles:
            whole, updated = styles[style]
            module = base.get_submodule(name)
            if type(module) is torch.nn.Linear:
                cuts[name] = whole
            elif update_by(module, updated):
                cuts[f"{name}.base_layer"] = whole
            else:
                raise RecipeError(
                    f"parallel.tensor={mesh.size()}: {name} is a {type(module).__name__}, which is not cut as a linear "
                    "layer with plain LoRA is: leave it out of the adapter, or say parallel.strategy=fsdp"
                )
    parallelize_module(base, mesh, cuts)


def _add_up(base: Any, plan: dict[str, str], mesh: "DeviceMesh") -> None:
    """Have gradients, which are averaged over all processes that have a weight whole, be what the whole layers' are."""
    from torch.distributed.fsdp import FSDPModule

    axes = dict(zip(mesh.mesh_dim_names or (), mesh.shape, strict=True))
    for name in plan:
        module = base.get_submodule(name)
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(mesh.size() // axes["tensor"])
            module.set_force_sum_reduction_for_comms(
                True
            )  # another divisor than the number of summands, by any backend
            continue
        for one in module.parameters():
            if one.requires_grad and not isinstance(one, DTensor):  # of the update, or of the norm
                one.register_hook(partial(torch.mul, other=axes["tensor"]))


def step_apart(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer update weights one by one where some lie in other parts than others: no kernel takes both."""

    def places(group: dict[str, Any]) -> int:
        return len({one.device_mesh if isinstance(one, DTensor) else None for one in group["params"]})

    def apart(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:  # others than before, where a state was loaded
            group["fused"], group["foreach"] = False, False

    if any(places(group) > 1 for group in optimizer.param_groups):
        optimizer.register_step_pre_hook(apart)


class _Enter(torch.autograd.Function):
    """What all processes of a group have alike; the gradient is the sum of what each makes of it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        all_reduce(total, group=ctx.group)
        return total, None


class _Sum(torch.autograd.Function):
    """The sum of what the processes of a group have, of which all make the same."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


@dataclass(frozen=True, eq=False)
class _Part:
    """Computes the part of this process of layers that have updates: its place among so many of a group."""

    group: Any
    place: int
    number: int

    def own(self, matrix: torch.Tensor | None, axis: int) -> torch.Tensor:
        """The rows or columns of a matrix that meet the part."""
        assert matrix is not None, "the layers have updates"
        return matrix.chunk(self.number, axis)[self.place]


class ByOutputs(_Part):
    """Layers that are cut by their outputs."""

    def __call__(self, x: torch.Tensor, layers: Sequence[Layer]) -> tuple[torch.Tensor, ...]:
        """Of the results of an input [.., I] that all have, the outputs that are here: [.., O / N] each."""
        here = [replace(one, product=Dense(*_local(one)), up=self.own(one.up, 0)) for one in layers]
        entered: Any = _Enter.apply(x, self.group)
        return linear(entered, here)


class ByInputs(_Part):
    """Layers that are cut by their inputs."""

    def __call__(self, x: torch.Tensor, layers: Sequence[Layer]) -> tuple[torch.Tensor, ...]:
        """The results [.., O], each the sum of what the processes make of the inputs [.., I / N] that they have."""
        local = [_local(one) for one in layers]
        here = [
            replace(one, product=Dense(weight, None), down=self.own(one.down, 1))
            for one, (weight, _) in zip(layers, local, strict=True)
        ]
        sums: list[Any] = [_Sum.apply(one, self.group) for one in linear(x, here)]
        return tuple(
            one if bias is None else one + bias.to(one.dtype) for one, (_, bias) in zip(sums, local, strict=True)
        )


def _local(layer: Layer) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The part of a layer's frozen weight, and of its bias, that is here."""
    held: Any = layer.product
    return held.weight.to_local(), None if held.bias is None else held.bias.to_local()


def plan_of(base: Any, number: int, option: str) -> dict[str, str]:
    """How each module is cut, by its name in the whole model. Raises RecipeError where that is not known here."""
    name, text = type(base).__name__, base.config.get_text_config()
    body = base.get_decoder()
    said = getattr(body.config, "base_model_tp_plan", None) or {}
    prefix = next(place for place, module in base.named_modules() if module is body)
    unknown = sorted({style for style in said.values() if style not in STYLES})
    if not said or unknown:
        how = f"in ways that are not known here ({', '.join(unknown)})" if unknown else "in no way that it says"
        raise RecipeError(f"{option}: {name} is cut {how}: say parallel.strategy=fsdp")
    for what in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        size = getattr(text, what, None)
        if size is not None and size % number:
            raise RecipeError(
                f"{option}: {what} of {name} is {size}: say a number that divides it, or parallel.strategy=fsdp"
            )
    found = {}
    for place, _ in body.named_modules():
        style = said.get(re.sub(r"(?<=\.)\d+(?=\.)", "*", place))
        if style is not None:
            found[f"{prefix}.{place}"] = style
    return found
