"""What a layer keeps of its forward pass for the backward pass: all, its input alone, or what is dear to compute again.

transformers checkpoints layers (`activation_checkpointing_enable`); here our options are put into its words. Its
checkpoints are the non-reentrant ones of torch, for which no input needs a gradient: none is asked of the embedding.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from tunesmith.engine.model import base_of
from tunesmith.errors import RecipeError
from tunesmith.recipe_train import Train

LOW_RANK = 8  # times which the inner size of a product is below the size of its output


def checkpoint_activations(model: Any, train: Train) -> None:
    """Have a loaded (and perhaps adapted) model compute activations again as `train` says.

    Raises:
        RecipeError: the model does not support it.
    """
    choice = train.activation_checkpointing
    if choice is False:
        return
    base = base_of(model)
    options: dict[str, Any] = {"use_reentrant": False}
    if choice == "selective":
        options |= {"context_fn": keep_products}
    layers = 1 if choice in (True, "selective") else choice
    try:
        base.activation_checkpointing_enable(options, every_n_layers=layers, offload=train.activation_offload)
    except ValueError as error:
        raise RecipeError(f"train.activation_checkpointing={choice}: {str(error).splitlines()[0]}") from error
    base.disable_input_require_grads()  # which it always asks for, and only reentrant checkpoints need


def keep_products() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The contexts in which a checkpoint keeps products of matrices and outputs of attention, and nothing else."""
    contexts = create_selective_checkpoint_contexts(_Keep(), allow_cache_entry_mutation=True)
    forward, again = contexts
    return forward, again


class _Keep:
    """Decides, operation by operation in one checkpoint, what is kept.

    torch sees what an autograd function runs, not the function. One that adds to a product in place (`addmm_`) has its
    final value kept: computing again, the product gives that value and the addition is passed over. So nothing may
    have read the product in between.
    """

    def __init__(self) -> None:
        self.kept: set[int] = set()  # storages, which live as long as the checkpoint
        self.read: set[int] = set()  # those of them that an operation has read

    def __call__(self, context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        """Whether the output of an operation is kept."""
        name = operation.name().partition("::")[2].partition(".")[0]
        outputs = {_storage(tensor) for tensor in _tensors([context.op_output])}
        changed = {_storage(tensor) for tensor in _tensors([*args[:1], *kwargs.values()])} & outputs & self.kept
        if changed and (name.endswith("_") or "out" in kwargs):
            if changed & self.read:
                raise RuntimeError(
                    f"activation_checkpointing=selective: {name} changes a product that was used before: use true"
                )
            return CheckpointPolicy.MUST_SAVE
        self.read |= {_storage(tensor) for tensor in _tensors(args)} & self.kept - outputs  # a view reads nothing
        if _is_dear(name, args) or "attention" in name or "attn" in name:
            self.kept |= outputs
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE


def _is_dear(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation is a product of matrices [n, k] and [k, m] with a long sum for each value: not of low rank.

    A low rank's product is as large as the one it is added to, and quick. Products by heads (`bmm`) are attention's
    scores and their like, larger than all that they are made from.
    """
    if "bmm" in name:
        return False
    factors = [tensor for tensor in _tensors(args) if tensor.ndim >= 2][-2:]
    return name.strip("_").endswith("mm") and LOW_RANK * factors[-1].shape[-2] >= factors[-1].shape[-1]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among some values and in their lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
