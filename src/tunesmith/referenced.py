"""The reference of a run: which frozen model it is, and the rows with its log-probabilities."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunesmith.adapted import Adapted, precision
from tunesmith.beside import load_frozen
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
    from tunesmith.engine import initial
    from tunesmith.engine.model import is_adapted
    from tunesmith.engine.reference import Reference

    def loaded(said: Model) -> "tuple[Reference, list[str]]":
        found = load_frozen("reference", said, recipe, device, tokenizer)
        return Reference(found.model, found.scorer, found.identity), found.notes

    if recipe.reference.model is not None:
        said = {"path": recipe.reference.model, "frozen_dtype": recipe.reference.frozen_dtype}
        return loaded(Model(**said))
    if recipe.adapter.begins_elsewhere() or initial.is_kept(adapted.model):
        return _beginning(adapted), []
    if is_adapted(adapted.model) or is_once(recipe):  # without its adapter, or as it is now, before training
        return Reference(None, adapted.kernels.scorer, adapted.fingerprint), []
    if adapted.fingerprint is None:
        raise RecipeError(
            f"reference.compute={recipe.reference.compute} needs a copy of the model, which a script brought: "
            "say reference.compute=once, or name it in reference.model"
        )
    return loaded(recipe.model)


def _beginning(adapted: Adapted) -> "Reference":
    """The model with the adapter that training begins with, which is kept beside the one that is trained."""
    from tunesmith.engine import initial, multi_adapter
    from tunesmith.engine.reference import Reference

    if not initial.is_kept(adapted.model):
        initial.keep(adapted.model, multi_adapter.active(adapted.model))
    known = adapted.fingerprint and f"{adapted.fingerprint} {initial.digest(adapted.model)}"
    return Reference(None, adapted.kernels.scorer, known, initial.NAME)


def is_once(recipe: Recipe) -> bool:
    """Whether the reference's log-probabilities are made once, before the first step."""
    choice = recipe.reference.compute
    return choice == "once" or (choice == "auto" and not recipe.data.streaming)


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
