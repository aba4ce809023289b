"""The reference of a run: which frozen model it is, and the rows with its log-probabilities."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunesmith.adapted import Adapted, precision
from tunesmith.errors import RecipeError
from tunesmith.recipe import Model, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.load import Rows
    from tunesmith.engine.reference import Reference


def reference_of(
    recipe: Recipe, device: str, adapted: Adapted, tokenizer: "PreTrainedTokenizerBase"
) -> "tuple[Reference | None, list[str]]":
    """The reference of a resolved recipe, where its objective has one, and what has to be said of it.

    Raises:
        RecipeError: it has other tokens, or a copy of a model that a script brought would be needed.
        ModelError: it cannot be loaded.
    """
    if "reference" not in type(recipe.objective).needs:
        return None, []
    from tunesmith.engine.model import is_adapted
    from tunesmith.engine.reference import Reference

    if recipe.reference.model is not None:
        said = {"path": recipe.reference.model, "frozen_dtype": recipe.reference.frozen_dtype}
        return _loaded(recipe, Model(**said, dtype=recipe.model.dtype), device, tokenizer)
    if is_adapted(adapted.model):
        return Reference(None, adapted.kernels.scorer, adapted.fingerprint), []
    if is_once(recipe):  # the model as it is now, before training
        return Reference(None, adapted.kernels.scorer, adapted.fingerprint), []
    if adapted.fingerprint is None:
        raise RecipeError(
            f"reference.compute={recipe.reference.compute} needs a copy of the model, which a script brought: "
            "say reference.compute=once, or name it in reference.model"
        )
    return _loaded(recipe, recipe.model, device, tokenizer)


def is_once(recipe: Recipe) -> bool:
    """Whether the reference's log-probabilities are made once, before the first step."""
    choice = recipe.reference.compute
    return choice == "once" or (choice == "auto" and not recipe.data.streaming)


def _loaded(
    recipe: Recipe, said: Model, device: str, tokenizer: "PreTrainedTokenizerBase"
) -> "tuple[Reference, list[str]]":
    """A model of its own, frozen, with its kernels."""
    from tunesmith import record
    from tunesmith.engine import frozen, kernels
    from tunesmith.engine.model import load_model, load_tokenizer
    from tunesmith.engine.reference import Reference

    if said.path != recipe.model.path and load_tokenizer(said).get_vocab() != tokenizer.get_vocab():
        raise RecipeError(f"reference.model: {said.path} has other tokens than {recipe.model.path}: name another one")
    model: Any = load_model(said, device).requires_grad_(False).eval()
    identity = record.model_fingerprint(model) + f" {said.dtype} {said.frozen_dtype}"
    ops, notes = kernels.elementwise(model, recipe.train.compile)
    if said.frozen_dtype is not None:
        notes.append(frozen.hold(model, said.frozen_dtype, ops))
    with precision(recipe, device):
        chosen = kernels.choose(model, ops)
    return Reference(model, chosen.scorer, identity), [f"reference: {line}" for line in (*notes, *chosen.notes)]


def with_logps(
    recipe: Recipe, reference: "Reference", model: Any, rows: "Rows", device: str, say: Callable[[str], None]
) -> "Rows":
    """The rows with the reference's log-probabilities. Raises DataError when they cannot be kept."""
    from tunesmith.data.batch import PackedRows
    from tunesmith.engine.reference import stored

    assert isinstance(rows.train, PackedRows), "a stream's are made in every step"
    with precision(recipe, device):
        train = stored(recipe, reference, model, rows.train, say)
        held_out = None if rows.held_out is None else stored(recipe, reference, model, rows.held_out, say)
    return replace(rows, train=train, held_out=held_out)
