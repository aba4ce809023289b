"""A model that is ready to be trained: loaded, adapted, and with the kernels that gave its own numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.data import registry
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe
from tunesmith.types import Head

if TYPE_CHECKING:
    import torch

    from tunesmith.engine.kernels import Kernels


SHOWN = 8  # names of classes that a line has


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
    from tunesmith.engine import encoder_decoder, frozen, kernels
    from tunesmith.engine.activations import checkpoint_activations
    from tunesmith.engine.model import base_of, keep_heads_exact, load_model, load_tokenizer, with_padding

    head = head_of(recipe)
    pad = None if head is None else with_padding(load_tokenizer(recipe.model)).pad_token_id
    transformers.set_seed(recipe.train.seed)
    model: Any = load_model(recipe.model, device, head=head, pad=pad) if given is None else given.to(device)
    if head is not None:
        _refuse_another(model, head)
        if given is None:
            keep_heads_exact(model)
    fingerprint = record.model_fingerprint(model) if given is None else None
    if type(recipe.objective).encodes:
        encoder_decoder.begin_answers(model, recipe.objective)
    rows = _new_rows(recipe, given)
    model = (recipe.adapter.training_rows(rows) if rows else recipe.adapter).apply(model)
    recipe.optimizer.build(
        model, recipe.adapter.factors(model)
    )  # once, for nothing: what it lacks would come out after the run folder is made
    checkpoint_activations(model, recipe.train)
    ops, notes = kernels.elementwise(model, recipe.train.compile)
    notes += _said_of_rows(recipe, model, rows)
    if head is not None:
        new = type(base_of(model)).__name__ not in (base_of(model).config.architectures or ())
        notes.append(f"head: {'a new one' if new else 'as stored'} for {shown(head.names)}")
    if recipe.model.dropout is not None and given is not None:
        raise RecipeError(
            f"model.dropout: {recipe.model.dropout} would change the model that was given: set its config"
        )
    if recipe.model.frozen_dtype is not None and given is not None:
        raise RecipeError(f"model.frozen_dtype: {recipe.model.frozen_dtype} would change the model that was given")
    if recipe.model.frozen_dtype is not None:
        notes.append(frozen.hold(model, recipe.model.frozen_dtype, ops))
    with precision(recipe, device):
        chosen = (encoder_decoder if type(recipe.objective).encodes else kernels).choose(model, ops)
    return Adapted(model, chosen, fingerprint, (*notes, *chosen.notes))


def _new_rows(recipe: Recipe, given: Any | None) -> list[int]:
    """The numbers of the recipe's new tokens. Raises RecipeError when a script brought the model."""
    from tunesmith.engine import new_tokens
    from tunesmith.engine.model import load_tokenizer

    if not recipe.model.added():
        return []
    if given is not None:
        first = next(iter(recipe.model.added()))
        raise RecipeError(
            f"model.new_tokens: {first!r} would change the model that was given: lengthen its embeddings yourself"
        )
    return list(new_tokens.ids(recipe.model, load_tokenizer(recipe.model)).values())


def _said_of_rows(recipe: Recipe, model: Any, rows: Sequence[int]) -> list[str]:
    """What has to be said of new tokens."""
    from tunesmith.engine.model import base_of, is_adapted

    if not rows:
        return []
    weight = None if is_adapted(model) else base_of(model).get_input_embeddings().weight
    frozen = weight is not None and not weight.requires_grad
    how = "stay as they begin, since the embeddings are frozen" if frozen else "are trained"
    alone = " beside the updates" if is_adapted(model) else ""
    return [f"new tokens: {shown(list(recipe.model.added()))}: their rows of the embeddings {how}{alone}"]


def head_of(recipe: Recipe) -> Head | None:
    """The head that a recipe's objective needs, for the classes that its data name; None where it needs words.

    Raises:
        RecipeError: the sources name other classes, or their number is not clear.
    """
    named = {}
    for one in registry.applied(recipe).data.train:
        if one.format.class_names():
            named[one.format.class_names()] = one.path
    if len(named) > 1:
        (first, path), (second, other) = list(named.items())[:2]
        raise RecipeError(f"data.train: {path} has the classes {shown(first)}, and {other} {shown(second)}")
    return recipe.objective.head(next(iter(named), ()))


def named(recipe: Recipe) -> dict[str, Any]:
    """The names of classes that an objective counts entities by, as the data or its own options say, by option."""
    head = head_of(recipe)
    return {"objective.names": head.names} if head is not None and head.tokens else {}


def shown(names: Sequence[str]) -> str:
    """The first names, and how many there are where there are more."""
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)})" if len(names) > SHOWN else "")


def _refuse_another(model: Any, head: Head) -> None:
    """Raise RecipeError when a model that a script brought has another head."""
    from tunesmith.engine.model import has_words, says_tokens

    if has_words(model) or model.config.num_labels != len(head.names) or says_tokens(model) != head.tokens:
        kind = "Token" if head.tokens else "Sequence"
        raise RecipeError(
            f"the objective needs a model with a head of {len(head.names)} values, and {type(model).__name__} was "
            f"brought: load it by AutoModelFor{kind}Classification with num_labels={len(head.names)}"
        )


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
