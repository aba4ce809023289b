"""A model that is ready to be trained: loaded, adapted, and with the kernels that gave its own numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import recipe_parallel
from tunesmith.component import find, name_of, refusal
from tunesmith.data import registry
from tunesmith.errors import RecipeError
from tunesmith.recipe import Model, Recipe
from tunesmith.seams import Quantization
from tunesmith.types import Head

if TYPE_CHECKING:
    import torch

    from tunesmith.engine.context import Group
    from tunesmith.engine.kernels import Kernels
    from tunesmith.engine.zero import Begun


SHOWN = 8  # names of classes that a line has


@dataclass(frozen=True)
class Adapted:
    """The model, what it runs with, and what tells its weights from others."""

    model: Any
    kernels: "Kernels"
    fingerprint: str | None  # of the weights that training starts from; None: a script brought them
    notes: tuple[str, ...] = ()  # what has to be said of it
    group: "Group | None" = None  # the processes that share rows with this one
    begun: "Begun | None" = None  # DeepSpeed, where it trains


def adapt(recipe: Recipe, device: str, given: Any | None, swap: Path | None = None) -> Adapted:
    """The model of a resolved recipe, or the one that a script gave, on a device; by the recipe's seed alone.

    `swap` is where this process keeps the optimizer's state, where DeepSpeed keeps that in files.

    Raises:
        ModelError, RecipeError, MissingExtra: it cannot be had, adapted, updated or trained on packed rows.
    """
    import transformers

    from tunesmith import record
    from tunesmith.engine import encoder_decoder, frozen, kernels, quantised, rope, shared_out, tensor, zero
    from tunesmith.engine.activations import checkpoint_activations
    from tunesmith.engine.model import base_of, keep_heads_exact, load_model, load_tokenizer, with_padding

    if given is not None:
        _refuse_changes(recipe.model)
    head = head_of(recipe)
    pad = None if head is None else with_padding(load_tokenizer(recipe.model)).pad_token_id
    transformers.set_seed(recipe.train.seed)
    place = shared_out.loading_place(recipe, device)
    model: Any = load_model(recipe.model, place, head=head, pad=pad) if given is None else given.to(place)
    if head is not None:
        _refuse_another(model, head)
        if given is None:
            keep_heads_exact(model)
    if quantised.held_in(base_of(model)) is not None:
        quantised.refuse_untrainable(base_of(model), recipe.model.path)
        if not type(recipe.adapter).beside:
            raise RecipeError(
                f"adapter={name_of(recipe.adapter)} trains the model's own weights, and {recipe.model.path} is held in "
                f"{quantised.held_in(base_of(model))}, which has no small steps: use adapter=lora"
            )
        _refuse_as_stored(recipe, base_of(model))
    fingerprint = record.model_fingerprint(model) if given is None else None
    if type(recipe.objective).encodes:
        encoder_decoder.begin_answers(model, recipe.objective)
    rows = _new_rows(recipe)
    model = (recipe.adapter.training_rows(rows) if rows else recipe.adapter).apply(model)
    built = recipe.optimizer.build(
        model, recipe.adapter.factors(model)
    )  # once, mostly for nothing: what it lacks would come out after the run folder is made
    checkpoint_activations(model, recipe.train)
    parts = tensor.share_out(model, recipe, device)
    begun, said = zero.begin(model, built, recipe, device, swap)
    ops, notes = kernels.elementwise(model, shared_out.compiles(recipe))
    notes.extend([*parts, *said, *recipe.adapter.notes(model)])
    notes += _said_of_rows(recipe, model, rows)
    if head is not None:
        new = shared_out.plain_class(base_of(model)).__name__ not in (base_of(model).config.architectures or ())
        notes.append(f"head: {'a new one' if new else 'as stored'} for {shown(head.names)}")
    if recipe.model.rope_scaling.rope_type is not None:
        notes += rope.said(base_of(model).config)
    notes += quantised.said(base_of(model))
    with precision(recipe, device):
        chosen = (encoder_decoder if type(recipe.objective).encodes else kernels).choose(model, ops)
        if recipe.model.frozen_dtype is not None:  # now: what it rounds would be most of what is compared
            notes.append(frozen.hold(model, recipe.model.frozen_dtype, ops))
        group, said = _attending(model, chosen, recipe)
    return Adapted(model, chosen, fingerprint, (*notes, *chosen.notes, *said), group, begun)


def _attending(model: Any, chosen: "Kernels", recipe: Recipe) -> "tuple[Group | None, list[str]]":
    """Have a model attend as training does; the processes that it shares rows with, and what has to be said."""
    from tunesmith.engine import context, shifted_attention

    group = context.use(model, chosen.scorer, recipe)
    said = context.notes(group)
    if recipe.train.shifted_sparse_attention is not None:
        said.append(shifted_attention.use(model, chosen.scorer.packed, recipe.train.shifted_sparse_attention))
    return group, said


def _refuse_changes(said: Model) -> None:
    """Raise RecipeError for an option that would change a model that a script brought."""
    how = {
        "frozen_dtype": (said.frozen_dtype, "leave it out"),
        "dropout": (said.dropout, "set its config"),
        "rope_scaling": (said.rope_scaling.rope_type, "write it into its config before it is built"),
        "new_tokens": (next(iter(said.added()), None), "lengthen its embeddings yourself"),
    }
    for option, (value, instead) in how.items():
        if value is not None:
            raise RecipeError(f"model.{option}: {value} would change the model that was given: {instead}")


def _refuse_as_stored(recipe: Recipe, model: Any) -> None:
    """Raise RecipeError for an adapter, or for parts of weights, that do not go with what a model is stored in."""
    from tunesmith.engine import quantised

    kind = quantised.component_of(model)
    if kind is None:
        return
    held = find(Quantization, kind)()
    said = recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantization": held})})
    reason = refusal([recipe.adapter, held]) or recipe_parallel.problem(said)
    if reason is not None:
        stored = quantised.held_in(model)
        as_here = kind if stored == "bitsandbytes" else f"{stored}, which is held here as {kind} is"
        raise RecipeError(f"{recipe.model.path} is stored in {as_here}. {reason}")


def _new_rows(recipe: Recipe) -> list[int]:
    """The numbers of the recipe's new tokens."""
    from tunesmith.engine import new_tokens
    from tunesmith.engine.model import load_tokenizer

    if not recipe.model.added():
        return []
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
    from tunesmith.engine.quantised import numel

    each = [(numel(one), one.requires_grad) for one in model.parameters()]
    return {"trained": sum(size for size, trained in each if trained), "all": sum(size for size, _ in each)}


PARTS = {
    "experts": r"\.experts\.",
    "norms": r"norm|\.ln_",
    "attention": r"attn|attention",
    "mlp": r"mlp|feed_forward|ffn|\.(fc\d|c_fc|gate_proj|up_proj|down_proj|w[io]\w*|dense)\.",
    "embeddings": r"embed|\.wte\.|\.wpe\.|\.shared\.",
    "head": r"lm_head|score|classifier|pooler|output",
}


def trained_by_part(model: Any) -> dict[str, int]:
    """How many numbers are trained in each part of a model, by the names of parameters; those in none are others."""
    from tunesmith.engine.quantised import numel

    found: dict[str, int] = {}
    for name, one in model.named_parameters():
        if one.requires_grad:
            part = next((part for part, pattern in PARTS.items() if re.search(pattern, f".{name.lower()}.")), "others")
            found[part] = found.get(part, 0) + numel(one)
    return {part: found[part] for part in (*PARTS, "others") if part in found}


def precision(recipe: Recipe, device: str) -> "torch.autocast":
    """The autocast of training, on or off."""
    import torch

    train = recipe.train
    half = torch.bfloat16 if train.bf16 else torch.float16
    return torch.autocast(device, half, enabled=bool(train.bf16) or train.fp16)
