"""What a recipe leaves open, filled from what it says and the device it runs on. Nothing is written back into it."""

from dataclasses import dataclass
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe

HOSTS = ("cpu", "mps")  # devices whose memory is the host's


@dataclass(frozen=True, slots=True)
class Device:
    """A device and what decides defaults on it."""

    type: str  # cpu, cuda, mps, xpu
    name: str
    has_bf16: bool  # arithmetic in bfloat16 is faster than in float32


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe without open values, and the values that were derived, by dotted option."""

    recipe: Recipe
    derived: dict[str, Any]


def resolve(recipe: Recipe, device: Device) -> Resolved:
    """Fill every value that the recipe leaves open. Raises RecipeError for what the device cannot do."""
    train, model = recipe.train, recipe.model
    beside = type(recipe.adapter).beside
    if train.fp16 and device.type == "cpu":
        raise RecipeError(f"train.fp16: there is no float16 training on {device.type}: leave it out, or set train.bf16")
    if train.activation_offload and device.type in HOSTS:
        raise RecipeError(
            f"train.activation_offload: on {device.type} activations lie in the host's memory already, so it would "
            "save none: leave it out"
        )
    if model.frozen_dtype is not None and not beside:
        raise RecipeError(
            f"model.frozen_dtype: {model.frozen_dtype} is for a model that stays as it is beside an adapter, and this "
            "adapter saves the model's own weights: leave it out"
        )
    low_precision = "bfloat16" if device.has_bf16 else "float32"
    dtype = model.dtype if model.dtype != "auto" else (low_precision if beside and not train.fp16 else "float32")
    if train.fp16 and not beside and dtype != "float32":
        raise RecipeError(
            f"train.fp16 scales the loss, which needs trained weights in float32, and model.dtype is {dtype}: "
            "set model.dtype=float32"
        )
    derived: dict[str, Any] = {}
    if model.dtype == "auto":
        derived["model.dtype"] = dtype
    if train.bf16 is None:
        derived["train.bf16"] = device.has_bf16 and device.type != "cpu" and not train.fp16 and dtype != "float16"
    if train.row_tokens is None:
        derived["train.row_tokens"] = recipe.data.max_tokens * type(recipe.objective).sequences()
    if recipe.optimizer.learning_rate is None:
        factor = type(recipe.optimizer).learning_rate_factor * type(recipe.objective).learning_rate_factor
        derived["optimizer.learning_rate"] = type(recipe.adapter).learning_rate * factor
    if train.lr_scheduler_type is None:
        derived["train.lr_scheduler_type"] = (*type(recipe.optimizer).schedulers, "cosine")[0]
    if train.device == "auto":
        derived["train.device"] = device.type
    if recipe.name is None:
        derived["name"] = f"{model.path.rstrip('/').rpartition('/')[2].replace(':', '-')}-{objective_name(recipe)}"
    return Resolved(with_values(recipe, derived), derived)


def objective_name(recipe: Recipe) -> str:
    """The objective's word, short enough for a folder."""
    from pathlib import Path

    from tunesmith.component import name_of

    return Path(name_of(recipe.objective)).stem


def with_values(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """A copy of a recipe with some dotted options set."""
    for key, value in values.items():
        section, _, option = key.rpartition(".")
        inner = getattr(recipe, section).model_copy(update={option: value}) if section else None
        recipe = recipe.model_copy(update={section: inner} if section else {option: value})
    return recipe
