"""A model that is ready to be trained: loaded, adapted, and with the kernels that gave its own numbers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from tunesmith.engine.kernels import Kernels


@dataclass(frozen=True)
class Adapted:
    """The model, what it runs with, and what tells its weights from others."""

    model: Any
    kernels: "Kernels"
    fingerprint: str | None  # of the weights that training starts from; None: a script brought them
    notes: tuple[str, ...] = ()  # what has to be said of it


def adapt(recipe: Recipe, device: str, given: Any | None) -> Adapted:
    """The model of a resolved recipe, or the one that a script gave, on a device; by the recipe's seed alone.

    Raises:
        ModelError, RecipeError, MissingExtra: it cannot be had, adapted, updated or trained on packed rows.
    """
    import transformers

    from tunesmith import record
    from tunesmith.engine import frozen, kernels
    from tunesmith.engine.activations import checkpoint_activations
    from tunesmith.engine.model import load_model

    transformers.set_seed(recipe.train.seed)
    model: Any = load_model(recipe.model, device) if given is None else given.to(device)
    fingerprint = record.model_fingerprint(model) if given is None else None
    model = recipe.adapter.apply(model)
    recipe.optimizer.build(model)  # once, for nothing: what it lacks would come out after the run folder is made
    checkpoint_activations(model, recipe.train)
    ops, notes = kernels.elementwise(model, recipe.train.compile)
    if recipe.model.frozen_dtype is not None and given is not None:
        raise RecipeError(f"model.frozen_dtype: {recipe.model.frozen_dtype} would change the model that was given")
    if recipe.model.frozen_dtype is not None:
        notes.append(frozen.hold(model, recipe.model.frozen_dtype, ops))
    with precision(recipe, device):
        chosen = kernels.choose(model, ops)
    return Adapted(model, chosen, fingerprint, (*notes, *chosen.notes))


def parameters(model: Any) -> dict[str, int]:
    """How many numbers a model has, and how many of them are trained."""
    each = [(one.numel(), one.requires_grad) for one in model.parameters()]
    return {"trained": sum(size for size, trained in each if trained), "all": sum(size for size, _ in each)}


def precision(recipe: Recipe, device: str) -> "torch.autocast":
    """The autocast of training, on or off."""
    import torch

    train = recipe.train
    half = torch.bfloat16 if train.bf16 else torch.float16
    return torch.autocast(device, half, enabled=bool(train.bf16) or train.fp16)
