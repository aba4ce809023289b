"""From what a person names (a run, checkpoint, adapter or model) to a model and tokenizer ready to answer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.engine import checkpoint, flat_parts, new_tokens, quantised, rope, shares, stacked
from tunesmith.engine.device import choose
from tunesmith.engine.model import (
    keep_heads_exact,
    load_model,
    load_tokenizer,
    read_config,
    resolve_path,
    widened_model,
)
from tunesmith.errors import ModelError, RunError, near
from tunesmith.generate.endpoint import is_address
from tunesmith.recipe import Dtype, Model, Recipe
from tunesmith.recipe_rope import RopeScaling
from tunesmith.types import Head
from tunesmith.way_on import way_on

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER, MODEL, RECIPE = "adapter_config.json", "config.json", "recipe.yaml"
BASE = "base"  # in place of a model that one is set beside: what a run or an adapter began with


def locate(path: str) -> str:
    """The folder of weights that a path says, or the hub id that it is.

    A run folder means its `final/`; a checkpoint, adapter or model folder is itself.

    Raises:
        RunError: the run has no final weights yet.
        ModelError: there is nothing, or nothing with weights, at the path.
    """
    if is_address(path):
        raise ModelError(f"{path} is a server's address, and weights are needed here: say a run, a folder or a hub id")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.parent != Path() and not folder.exists() and _has_runs(folder.parent):
            raise RunError(f"there is no run {path}. {near(folder.name, _runs(folder.parent))}")
        return resolve_path(path)
    if has_weights(folder) or (not (folder / RECIPE).is_file() and any(folder.glob("*.gguf"))):
        return str(folder) if has_weights(folder) else resolve_path(path)
    if (folder / RECIPE).is_file():
        if has_weights(folder / "final"):
            return str(folder / "final")
        raise RunError(f"{path} has no final/ yet: its run has not ended. {_way_on(folder)}")
    if has_parts(folder):
        raise ModelError(
            f"the weights of {path} lie in parts, as several processes wrote them: make a model of it first, with "
            f"tunesmith export {path} OUT type=merged, or go on with: {way_on(folder.parent.parent)}"
        )
    raise ModelError(
        f"{path} is no run, checkpoint, adapter or model: it has neither {RECIPE} nor {ADAPTER} nor {MODEL}"
    )


def has_weights(folder: Path) -> bool:
    """Whether a folder is that of an adapter or of a model."""
    return (folder / ADAPTER).is_file() or (folder / MODEL).is_file()


def has_parts(folder: Path) -> bool:
    """Whether a folder is that of a checkpoint whose weights lie in parts, as several processes write them."""
    return shares.there(folder) or flat_parts.has_weights(folder)


def is_adapter(place: str) -> bool:
    """Whether what `locate` found is an adapter, which needs its base model."""
    return (Path(place) / ADAPTER).is_file()


def _runs(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if (item / RECIPE).is_file()]


def _has_runs(folder: Path) -> bool:
    return folder.is_dir() and bool(_runs(folder))


def _way_on(run: Path) -> str:
    found = [checkpoint.place(run, step) for step in checkpoint.steps(run)]
    whole = [one for one in found if has_weights(one)]  # and not in parts, as several processes write them
    newest = f", or take its newest checkpoint: {whole[-1]}" if whole else ""
    return f"Go on with: {way_on(run)}{newest}"


def stored_head(place: str) -> Head | None:
    """The head for rewards or classes that what `locate` found was trained with; None where it says words.

    Raises:
        ModelError: its config cannot be read.
    """
    if is_adapter(place) and not (Path(place) / MODEL).is_file():
        return None
    config = read_config(place)
    kinds = config.architectures or ()
    tokens = any(kind.endswith("ForTokenClassification") for kind in kinds)
    if not tokens and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        return None
    return Head(tuple(config.id2label[number] for number in sorted(config.id2label)), config.problem_type, tokens)


def load(
    path: str,
    device: str = "auto",
    dtype: Dtype | None = None,
    values: bool = False,
    rope_scaling: RopeScaling | None = None,
    widened: bool = False,
    stored: bool = False,
    adapters: Mapping[str, str] | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model (a peft model where the path is an adapter's) in evaluation mode, and its tokenizer.

    `values` asks for one that says a reward or classes, and not words. An adapter's base is held in the bits that it
    was trained in; `widened` asks for the same numbers in plain weights, `stored` for the base as it is stored.
    `adapters` are folders or runs of LoRA adapters by the names that a `Decoder` is asked for them by.
    `device` is a word of `train.device`; `dtype` None is the stored one, or float32 where the device has no
    bfloat16 arithmetic. `rope_scaling` stretches its rotary positions, in place of what is stored with it.

    Raises:
        RunError, ModelError: see `locate`; or a part cannot be loaded.
        RecipeError: this machine has no such device, or the scaling does not go with the model.
    """
    place = locate(path)
    head = stored_head(place) if values or Path(place).is_dir() else None
    if (head is not None) != values:
        says = "rewards or classes, and no words: see tunesmith score" if head else "words, and no rewards or classes"
        raise ModelError(f"{path} says {says}")
    chosen = choose(device)
    precision: Dtype = dtype or ("auto" if chosen.has_bf16 else "float32")
    as_said = {"dtype": precision, "rope_scaling": rope_scaling or RopeScaling()}
    if is_adapter(place):
        base = named_base(place)
        model = _adapted(Path(place), base.model_copy(update=as_said), chosen.type, head, widened, stored)
    else:
        base = Model(path=place)
        model = load_model(base.model_copy(update=as_said), chosen.type, head=head)
    with_tokenizer = (Path(place) / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(Model(path=place, tokenizer=place) if with_tokenizer else base)
    if adapters:
        from tunesmith.generate.adapters import put

        if is_adapter(place):
            raise ModelError(f"{path} is an adapter: name its base model, {base.path!r}, and it among the adapters")
        model = put(model, tokenizer, adapters)
    return model.eval(), tokenizer


def named_base(adapter: str) -> Model:
    """The model that an adapter folder's weights belong to."""
    config = json.loads((Path(adapter) / ADAPTER).read_text(encoding="utf-8"))
    name = config.get("base_model_name_or_path")
    if not name:
        raise ModelError(f"{adapter}/{ADAPTER} names no base model: set its base_model_name_or_path")
    return Model(path=name, revision=config.get("revision"))


def positions_of(adapter: Path, base: Model) -> Any | None:
    """The config whose stretched rotary positions an adapter was trained with; None where they are its base model's."""
    stored = read_config(adapter) if (adapter / MODEL).is_file() else None
    kept = stored is not None and base.rope_scaling.rope_type is None and rope.is_scaled(stored)
    return stored if kept else None


def other_of(path: str, against: str) -> str:
    """The model that one is set beside: `base` is what it began with, another word is that model itself."""
    return began_with(path) if against == BASE else against


def began_with(path: str) -> str:
    """The model that a run, checkpoint or adapter began with. Raises ModelError, RunError."""
    place, recipe = locate(path), Path(path).expanduser() / RECIPE
    if is_adapter(place):
        return named_base(place).path
    if not recipe.is_file():
        raise ModelError(f"{path} is neither a run nor an adapter beside a base model: say --against MODEL")
    return Recipe.load(str(recipe)).model.path


def trained_rows(adapter: Path) -> list[int]:
    """The rows of the embeddings that an adapter brings, some of which its base model may lack."""
    config = json.loads((adapter / ADAPTER).read_text(encoding="utf-8"))
    found = config.get("trainable_token_indices") or []
    return [row for rows in found.values() for row in rows] if isinstance(found, dict) else found


def _adapted(folder: Path, base: Model, device: str, head: Head | None, widened: bool, stored: bool) -> Any:
    """An adapter folder's base model with the adapter beside its weights."""
    from transformers import GenerationConfig

    try:
        positions, held = positions_of(folder, base), None if stored else quantised.load_config(folder)
        model = load_model(base, device, head=head, positions=positions, held=held)
    except ModelError as error:
        raise ModelError(f"the adapter {folder} needs its base model {base.path!r}: {error}") from error
    if widened:
        model = widened_model(model, base.path)
    if head is not None:
        keep_heads_exact(model)
    rows = trained_rows(folder)
    if rows:
        new_tokens.lengthen(model, max(rows) + 1)
    adapted = stacked.put(model, folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    return adapted
