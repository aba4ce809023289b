"""The frozen models that a run holds beside the one it trains: a reference or a teacher that is asked in every step.

What of them is made once, before the first step, is kept with the rows, and the model is dropped. Every process holds
one whole, however the trained model is shared out. Of their own passes nothing is counted: nothing of them is kept.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

from tunesmith.planner.shapes import FROZEN_BITS, Shape, weights_of
from tunesmith.recipe import Model, Recipe


def other_models(recipe: Recipe, shape: Shape) -> int:
    """Bytes of the frozen models of a resolved recipe.

    Raises:
        ModelError, RunError: the config of one cannot be had.
    """
    return _reference(recipe, shape) + _teacher(recipe)


def _reference(recipe: Recipe, shape: Shape) -> int:
    from tunesmith.referenced import is_once

    said = recipe.reference
    if "reference" not in type(recipe.objective).needs:
        return 0
    if said.model is None and type(recipe.adapter).beside:  # the trained model, with its adapter off
        begun = recipe.adapter.begins_elsewhere()  # or with the one that it began with, which stays beside it
        return sum(one.nbytes for one in shape.weights if one.trained) * begun
    if is_once(recipe):
        return 0
    if said.model is not None:
        return frozen_bytes(said.model, recipe.model.dtype, said.frozen_dtype)
    return sum(one.nbytes for one in shape.weights)


def _teacher(recipe: Recipe) -> int:
    said = recipe.teacher
    if recipe.objective.teaching() is None or said.model is None or recipe.teaches_once():
        return 0
    return frozen_bytes(said.model, recipe.model.dtype, said.frozen_dtype)


@cache
def frozen_bytes(path: str, dtype: str, frozen_dtype: str | None) -> int:
    """Bytes of the weights of a model, an adapter's or a run's included, by the config alone."""
    import torch
    from transformers import AutoModelForCausalLM

    from tunesmith.engine.model import load_config
    from tunesmith.generate.load import is_adapter, locate, named_base

    place = locate(path)
    beside = sum(one.stat().st_size for one in Path(place).glob("*.safetensors")) if is_adapter(place) else 0
    config = load_config(named_base(place) if is_adapter(place) else Model(path=place))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).requires_grad_(False)
    bits = None if frozen_dtype is None else FROZEN_BITS[frozen_dtype]
    buffers = sum(one.nbytes for one in model.buffers())
    weights = weights_of(model)
    if bits is not None:  # one that is stored in few bits is widened first
        weights = (replace(one, stored=None) for one in weights)
    return sum(one.bytes_in(bits) for one in weights) + buffers + beside
