"""A frozen model beside the trained one: the reference of preferences, the teacher of a student."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.adapted import precision
from tunesmith.errors import ModelError, RecipeError
from tunesmith.recipe import Model, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.engine.scores import Scorer


@dataclass(frozen=True)
class Frozen:
    """A model that is not trained, with its kernels."""

    model: Any
    scorer: "Scorer"
    identity: str  # tells its numbers from those of other models
    notes: list[str]  # what has to be said of it


def load_frozen(section: str, said: Model, recipe: Recipe, device: str, tokenizer: "PreTrainedTokenizerBase") -> Frozen:
    """The model that a section's `model` says, in the trained one's dtype.

    It is a hub id, a model's or an adapter's folder, or a run.

    Raises:
        RecipeError: it has other tokens than the trained model.
        ModelError, RunError: it cannot be loaded.
    """
    from tunesmith import record
    from tunesmith.engine import frozen, kernels
    from tunesmith.engine.model import load_model, load_tokenizer, num_virtual_tokens
    from tunesmith.engine.scores import Scorer
    from tunesmith.engine.virtual_tokens import on_packed_rows
    from tunesmith.generate.load import is_adapter, load, locate, stored_head

    dtype = recipe.model.dtype
    place = locate(said.path)
    model: Any
    if is_adapter(place):
        model, own = load(place, device, dtype, widened=said.frozen_dtype is not None)
        if num_virtual_tokens(model):
            on_packed_rows(model)
        elif said.frozen_dtype is not None:
            model = model.merge_and_unload()  # an update would be rounded like a weight, and lost beside it
    else:
        if Path(place).is_dir() and stored_head(place) is not None:
            raise ModelError(f"{section}.model: {said.path} says rewards or classes, and no words: name another model")
        plain = said.model_copy(update={"dtype": dtype, "path": place})
        model, own = load_model(plain, device), load_tokenizer(plain)
    if said.path != recipe.model.path:
        _refuse_other_tokens(section, said, recipe, own.get_vocab(), tokenizer.get_vocab())
    model.requires_grad_(False).eval()
    identity = record.model_fingerprint(model) + f" {dtype} {said.frozen_dtype}"
    ops, notes = kernels.elementwise(model, recipe.train.compile)
    with precision(recipe, device):
        chosen = kernels.choose(model, ops)
    if said.frozen_dtype is not None:  # now: what it rounds would be most of what is compared
        notes.append(frozen.hold(model, said.frozen_dtype, ops))
    assert isinstance(chosen.scorer, Scorer), "it says words"
    return Frozen(model, chosen.scorer, identity, [f"{section}: {line}" for line in (*notes, *chosen.notes)])


def _refuse_other_tokens(
    section: str, said: Model, recipe: Recipe, theirs: dict[str, int], ours: dict[str, int]
) -> None:
    """Raise RecipeError, with the first word that differs, where a number is not the same word to both models."""
    different = min((one for one in theirs.items() ^ ours.items()), key=lambda pair: pair[1], default=None)
    if different is None:
        return
    word, _ = different
    here, there = (f"{known[word]}" if word in known else "not a token" for known in (ours, theirs))
    raise RecipeError(
        f"{section}.model: {said.path} has other tokens than {recipe.model.path} ({word!r} is {there} there and {here} "
        "here): name another one"
    )
