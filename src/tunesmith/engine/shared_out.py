"""A model whose weights lie in parts on several processes (torch's FSDP2), put together layer by layer as it computes.

Each layer is a group: its weights are gathered before its forward and its backward pass, and dropped after each. What
is in no layer (embeddings, the head) is gathered for the whole step, since the head's weights are read where the loss
is. What an adapter adds is small and lies whole on every process; the trainer adds its gradients up.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from tunesmith import recipe_fsdp, recipe_zero
from tunesmith.engine import quantised, ranks
from tunesmith.engine.compat import layer_kinds, without_hooks
from tunesmith.engine.model import base_of
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe
from tunesmith.recipe_parallel import Parallel

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs")


def wanted(recipe: Recipe) -> bool:
    """Whether the weights of a recipe's model are shared out among the processes of this run."""
    return recipe.parallel.shares_weights and ranks.number() > recipe.parallel.tensor


def is_cut(recipe: Recipe) -> bool:
    """Whether the products of its layers are (`engine/tensor.py`)."""
    return recipe.parallel.tensor > 1 and ranks.number() > 1


def loading_place(recipe: Recipe, device: str) -> str:
    """Where a model is loaded: in the host's memory if it is to be shared out, as it need not fit on a device."""
    parts = recipe.parallel.strategy == "deepspeed" and ranks.number() > 1 and recipe_zero.stage(recipe.parallel) == 3
    return "cpu" if wanted(recipe) or parts or is_cut(recipe) else device


def compiles(recipe: Recipe) -> bool | None:
    """What `train.compile` is for the model: our compiled gates read whole weights, which cut layers have not."""
    return False if is_cut(recipe) else recipe.train.compile


def sizes(parallel: Parallel, number: int) -> tuple[int, int]:
    """The copies of the model and the parts of the weights of each; a part is one process's, or a group's of `tensor`.

    Raises:
        RecipeError: so many processes do not make them.
    """
    copies, each, cut = parallel.replicate, parallel.fsdp, parallel.tensor
    places = number // cut
    copies = (places // each if each else 1) if copies is None else copies
    each = places // copies if each is None else each
    if copies * each * cut != number:
        raise RecipeError(
            f"parallel: {copies} copies of a model, each on {each * cut} processes, need {copies * each * cut} of "
            f"them, and these are {number}"
        )
    return copies, each


def mesh_of(recipe: Recipe, device: str) -> "DeviceMesh":
    """The processes by the copy of a model, the part of its weights and the part of its products that each has.

    An axis that has one place alone is left out. Raises RecipeError where their number does not fit the recipe.
    """
    from torch.distributed.device_mesh import init_device_mesh

    number, cut = ranks.number(), recipe.parallel.tensor
    copies, each = sizes(recipe.parallel, number) if wanted(recipe) else (number // cut, 1)
    axes = {"replicate": copies, "fsdp": each, "tensor": cut}
    axes = {name: size for name, size in axes.items() if size > 1 or (name == "fsdp" and wanted(recipe))}
    return init_device_mesh(device, tuple(axes.values()), mesh_dim_names=tuple(axes))


def share_out(model: Any, recipe: Recipe, device: str, mesh: "DeviceMesh") -> list[str]:
    """Share out a loaded and adapted model in place, whose products may be cut; what is to be said.

    Raises:
        RecipeError: the model's layers are not known or are others than `fsdp_config` says, or what is trained is of
            several dtypes.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    whole = {one for one in model.parameters() if one.requires_grad} if type(recipe.adapter).beside else set()
    kinds = sorted({str(one.dtype) for one in model.parameters() if one.requires_grad and one not in whole})
    if len(kinds) > 1:
        raise RecipeError(
            f"parallel.strategy=fsdp: trained weights in {' and '.join(kinds)} are not gathered together: set "
            "model.dtype=float32"
        )
    for one in whole:
        one.data = one.data.to(device)
    four_bit = _as_plain_tensors(model, device)
    uncut, shared = _meshes(mesh, device)
    layers, reshards = layers_of(model), recipe_fsdp.reshards(recipe.parallel)
    _refuse_others(layers, recipe_fsdp.layers(recipe.parallel))
    for layer in layers:
        policy = _policy(layer, recipe)
        for module, vectors in _apart(layer, policy.param_dtype is not None, whole):
            own = MixedPrecisionPolicy() if vectors else policy
            fully_shard(module, mesh=uncut, ignored_params=whole, mp_policy=own, reshard_after_forward=not vectors)
        fully_shard(layer, mesh=shared, ignored_params=whole, mp_policy=policy, reshard_after_forward=reshards)
    fully_shard(model, mesh=uncut, ignored_params=whole)
    for module in four_bit:
        module.weight.quant_state = module.quant_state
    copies, each = sizes(recipe.parallel, ranks.number())
    said = f"{copies} copies, each on {each}" if copies > 1 else f"{each}"
    return [f"parallel: the model's weights are shared out among processes ({said}), in {len(layers)} layers"]


def _as_plain_tensors(model: Any, device: str) -> list[Any]:
    """Make the weights of 4 bit layers plain parameters: bitsandbytes' own are other tensors when they are cut.

    Their scales stay whole on every process.
    """
    found: list[Any] = [module for module in model.modules() if quantised.is_four_bit(type(module))]
    for module in found:
        module.quant_state = quantised.state_of(module)
        module.quant_state.to(device)
        module.weight = torch.nn.Parameter(module.weight.data, requires_grad=False)
    return found


def _policy(layer: torch.nn.Module, recipe: Recipe) -> "MixedPrecisionPolicy":
    """How a layer's weights are gathered: float32 ones in bfloat16 where products are in it, as autocast rounds them.

    Half as much is sent, and no copies of all layers are kept until the end of the pass, as autocast keeps them. The
    numbers are autocast's: hidden states stay as they are, what is updated and its gradients' sums are float32. Bytes
    of 4 bit weights may be called float32 too, and are not rounded.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    held = any(quantised.is_four_bit(type(module)) for module in layer.modules())
    if held or not recipe.train.bf16 or all(one.dtype != torch.float32 for one in layer.parameters()):
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)


def _meshes(mesh: "DeviceMesh", device: str) -> "tuple[DeviceMesh, DeviceMesh]":
    """Who has parts of a weight that is not cut, and of one that is, of which each of a group has parts of its own.

    The copies in a group of what is not cut are averaged as others are, so that they stay equal.
    """
    from torch.distributed.device_mesh import DeviceMesh

    names = mesh.mesh_dim_names or ()
    if "tensor" not in names:
        return mesh, mesh
    *_, each, cut = mesh.shape
    places = mesh.mesh.view(-1, each, cut).transpose(1, 2).reshape(-1, each)
    return DeviceMesh(device, places, mesh_dim_names=("replicate", "fsdp")), mesh[names[:-1]]


def _apart(
    layer: torch.nn.Module, rounded: bool, ignored: set[torch.nn.Parameter]
) -> Iterator[tuple[torch.nn.Module, bool]]:
    """The modules of a layer that are gathered by themselves, and whether they hold vectors alone.

    Vectors, mostly norms, are where the layer is rounded, since autocast does not round them; and where products are
    cut, what is not.
    """
    cut = any(isinstance(one, DTensor) for one in layer.parameters())
    for module in layer.modules():
        own = [one for one in module.parameters(recurse=False) if one not in ignored]
        vectors = all(one.ndim < 2 for one in own)
        if own and ((rounded and vectors) or (cut and not any(isinstance(one, DTensor) for one in own))):
            yield module, vectors


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


def _refuse_others(layers: Sequence[torch.nn.Module], said: Sequence[str]) -> None:
    """Raise RecipeError where `parallel.fsdp_config` names other classes than those that a model's layers are of."""
    kinds = {type(one).__name__ for one in layers}
    if said and set(said) != kinds:
        raise RecipeError(
            f"parallel.fsdp_config: transformer_layer_cls_to_wrap={','.join(said)}, and the model's layers are "
            f"{','.join(sorted(kinds))}, which are gathered as wholes: say these, or leave it out"
        )


def is_shared(model: torch.nn.Module) -> bool:
    """Whether a model is shared out."""
    return any(isinstance(one, DTensor) or is_parted(one) for one in model.parameters())


def is_parted(parameter: torch.Tensor) -> bool:
    """Whether DeepSpeed has a parameter in parts."""
    return hasattr(parameter, "ds_tensor")


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
    for one in [*module.modules()][::-1]:  # what lies in another one first
        kind = plain_class(one)
        if kind is not type(one):  # torch refuses to copy what it shares out, whose hooks gather
            bare = kind.__new__(kind)
            vars(bare).update(vars(one) | {name: type(vars(one)[name])() for name in HOOKS})
            known[id(one)] = copy.deepcopy(bare, known)
    return without_hooks(copy.deepcopy(module, known))


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
            tensor = _whole(own.get(name, one)).cpu()
            known[number] = tensor if ranks.own() == 0 else tensor.new_empty(0)
        found[name] = known[number]
    return found if ranks.own() == 0 else {}


def gather(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Have every process hold what DeepSpeed has in parts whole, until the next step. All of them call it."""
    parted: list[Any] = [one for one in parameters if is_parted(one)]
    if parted:
        parted[0].all_gather(parted)


@contextmanager
def written(model: torch.nn.Module) -> Iterator[None]:
    """A block that writes, on all processes alike, into trained weights, which DeepSpeed may have in parts."""
    parted = [one for one in model.parameters() if one.requires_grad and is_parted(one)]
    if not parted:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(parted, modifier_rank=0):
        yield


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    if is_parted(tensor):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
