"""The teacher of a run: which frozen model it is, and the rows with its likeliest words where they are made once."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tunesmith.adapted import Adapted, precision
from tunesmith.beside import load_frozen
from tunesmith.errors import RecipeError
from tunesmith.recipe import Model, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.load import Rows
    from tunesmith.engine.scores import Scorer
    from tunesmith.engine.values import ValueScorer
    from tunesmith.types import Divergence


def with_teacher(
    recipe: Recipe,
    adapted: Adapted,
    rows: "Rows",
    tokenizer: "PreTrainedTokenizerBase",
    device: str,
    say: Callable[[str], None],
) -> "tuple[Rows, Scorer | ValueScorer]":
    """The rows and the scorer of a resolved recipe, with the teacher that its objective has, if any.

    Raises:
        RecipeError: the teacher has other tokens, or a head that is not read without its model.
        ModelError, RunError: it cannot be loaded.
        DataError: its words cannot be kept.
    """
    how, own = recipe.objective.teaching(), adapted.kernels.scorer
    if how is None:
        return rows, own
    from tunesmith.data.batch import PackedRows
    from tunesmith.engine.scores import Scorer
    from tunesmith.engine.teacher import Teacher, stored

    assert recipe.teacher.model is not None, "the recipe refuses to be without"
    assert isinstance(own, Scorer), "its head says words"
    said = Model(path=recipe.teacher.model, frozen_dtype=recipe.teacher.frozen_dtype)
    found = load_frozen("teacher", said, recipe, device, tokenizer)
    for line in found.notes:
        say(line)
    scorers = {"model": own, "teacher.model": found.scorer}
    words = _shared_words(scorers, how)
    teacher = Teacher(found.model, found.scorer, how, words, found.identity)
    if recipe.teaches_once():
        assert isinstance(rows.train, PackedRows), "a stream's are made in every step"
        place = next(adapted.model.parameters()).device
        with precision(recipe, device):
            train = stored(recipe, teacher, rows.train, place, say)
            held_out = None if rows.held_out is None else stored(recipe, teacher, rows.held_out, place, say)
        rows = replace(rows, train=train, held_out=held_out)
        teacher = replace(teacher, model=None, scorer=None)
    return rows, replace(own, teacher=teacher)


def _shared_words(scorers: "dict[str, Scorer]", how: "Divergence") -> int:
    """The words that the heads of student and teacher both have. Raises RecipeError when they cannot be compared."""
    from tunesmith.engine.layers import plain_linear

    for option, scorer in scorers.items():
        if not scorer.fused:
            raise RecipeError(
                f"{option}: its head ({type(scorer.head).__name__}) is not read apart from the model, and words are "
                "compared there: say a model, or an adapter, with a linear head"
            )
    heads = [plain_linear(scorer.head) for scorer in scorers.values()]
    words = min(head.out_features for head in heads if head is not None)
    if how.top_k is not None and how.top_k >= words:
        raise RecipeError(f"objective.top_k: {how.top_k} of {words:,} words leave none for the others: lower it")
    return words
