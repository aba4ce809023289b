"""A model whose weights lie in parts on several processes (torch's FSDP2), put together layer by layer as it computes.

Each layer is a group: its weights are gathered before its forward and its backward pass, and dropped after each. What
is in no layer (embeddings, the head) is gathered for the whole step, since the head's weights are read where the loss
is. What an adapter adds is small and lies whole on every process; the trainer adds its gradients up.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tunesmith.engine import ranks, tensor
from tunesmith.engine.compat import layer_kinds
from tunesmith.engine.model import base_of
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe
from tunesmith.recipe_parallel import Parallel


def wanted(recipe: Recipe) -> bool:
    """Whether the weights of a recipe's model are shared out among the processes of this run."""
    return recipe.parallel.shares_weights and ranks.number() > 1


def loading_place(recipe: Recipe, device: str) -> str:
    """Where a model is loaded: in the host's memory if it is to be shared out, as it need not fit on a device."""
    return "cpu" if wanted(recipe) or tensor.wanted(recipe) else device


def compiles(recipe: Recipe) -> bool | None:
    """What `train.compile` is for the model: our compiled gates read whole weights, which cut layers have not."""
    return False if tensor.wanted(recipe) else recipe.train.compile


def sizes(parallel: Parallel, number: int) -> tuple[int, int]:
    """The copies of the model and the processes of each.

    Raises:
        RecipeError: so many processes do not make them.
    """
    copies, each = parallel.replicate, parallel.fsdp
    copies = (number // each if each else 1) if copies is None else copies
    each = number // copies if each is None else each
    if copies * each != number:
        raise RecipeError(
            f"parallel: {copies} copies of a model, each on {each} processes, need {copies * each} of them, and these "
            f"are {number}"
        )
    return copies, each


def share_out(model: Any, recipe: Recipe, device: str) -> list[str]:
    """Share out a loaded and adapted model in place where it is to be, and move it to a device; what is to be said.

    Raises:
        RecipeError: the number of processes does not fit the recipe, the model's layers are not known, or what is
            trained is of several dtypes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if tensor.wanted(recipe):
        return tensor.cut(model, recipe, device)
    if not wanted(recipe):
        return []
    copies, each = sizes(recipe.parallel, ranks.number())
    if copies > 1:
        mesh = init_device_mesh(device, (copies, each), mesh_dim_names=("replicate", "fsdp"))
    else:
        mesh = init_device_mesh(device, (each,), mesh_dim_names=("fsdp",))
    whole = {one for one in model.parameters() if one.requires_grad} if type(recipe.adapter).beside else set()
    kinds = sorted({str(one.dtype) for one in model.parameters() if one.requires_grad and one not in whole})
    if len(kinds) > 1:
        raise RecipeError(
            f"parallel.strategy=fsdp: trained weights in {' and '.join(kinds)} are not gathered together: set "
            "model.dtype=float32"
        )
    for one in whole:
        one.data = one.data.to(device)
    layers = layers_of(model)
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    said = f"{copies} copies, each on {each}" if copies > 1 else f"{each}"
    return [f"parallel: the model's weights are shared out among processes ({said}), in {len(layers)} layers"]


def layers_of(model: Any) -> list[torch.nn.Module]:
    """The layers of a transformers model, which peft may have wrapped: the classes that it says are not to be split.

    Raises:
        RecipeError: it says none.
    """
    base = base_of(model)
    kinds = layer_kinds(base)
    found = [one for one in base.modules() if type(one).__name__ in kinds]
    if not found:
        raise RecipeError(
            f"parallel.strategy=fsdp: {type(base).__name__} does not say what its layers are, so it cannot be shared "
            "out: use ddp"
        )
    return found[::-1]  # what lies in another one first


def is_shared(model: torch.nn.Module) -> bool:
    """Whether a model is shared out."""
    return any(isinstance(one, DTensor) for one in model.parameters())


def plain_class(model: torch.nn.Module) -> Any:
    """The class that a model had before it was shared out."""
    from torch.distributed.fsdp import FSDPModule

    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def rest(model: torch.nn.Module) -> None:
    """Drop what is gathered of a model, on all processes alike: its parameters are its shares again.

    A forward pass without a backward pass leaves it gathered, so that its parameters are others than an optimizer's.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_copy(module: torch.nn.Module) -> torch.nn.Module:
    """A module with all of its weights, for a trial outside of the model; itself where nothing is shared out."""
    if not is_shared(module):
        return module
    known: dict[int, Any] = {
        id(one): torch.nn.Parameter(_whole(one), requires_grad=one.requires_grad) for one in module.parameters()
    }
    return copy.deepcopy(module, known)


def whole_state(model: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    """The state of a shared model, whole in the host's memory of rank 0, gathered tensor by tensor; elsewhere nothing.

    Every process calls it.
    """
    rest(model)
    own = dict(model.named_parameters(remove_duplicate=False))  # tied ones stay one tensor
    found: dict[str, torch.Tensor] = {}
    known: dict[int, torch.Tensor] = {}
    for name, one in model.state_dict().items():
        number = id(own.get(name, one))
        if number not in known:
            tensor = _whole(one).cpu()
            known[number] = tensor if ranks.own() == 0 else tensor.new_empty(0)
        found[name] = known[number]
    return found if ranks.own() == 0 else {}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
