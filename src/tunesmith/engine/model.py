"""Loading a model and its tokenizer; the only `from_pretrained` of weights in the package."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError, near
from tunesmith.recipe import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUILTIN = "builtin:"


def resolve_path(path: str) -> str:
    """The folder or hub id that a model's path says; `builtin:tiny` is a folder of the package.

    Raises:
        ModelError: there is no such built-in model, or a path that looks local does not exist.
    """
    if path.startswith(BUILTIN):
        folder = Path(__file__).parent.parent / "builtin"
        known = sorted(item.parent.name for item in folder.glob("*/config.json"))
        name = path.removeprefix(BUILTIN)
        if name not in known:
            raise ModelError(f"there is no built-in model {path!r}. {near(name, known)}")
        return str(folder / name)
    local = Path(path).expanduser()
    if local.exists():
        if not (local / "config.json").is_file():
            raise ModelError(f"{path} is not a model folder: it has no config.json")
        return str(local.resolve())  # an adapter names its base by it, and is loaded from other folders
    return _hub_id(path, "model")


def _hub_id(path: str, kind: str) -> str:
    """A path that is no folder here, when it can be a hub id."""
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(f"there is no {kind} folder {path}")
    return path


def _tokenizer_place(model: Model) -> str:
    """The folder or hub id of a model's tokenizer, which may lie in a folder without a config.json."""
    if model.tokenizer is None or model.tokenizer.startswith(BUILTIN):
        return resolve_path(model.tokenizer or model.path)
    local = Path(model.tokenizer).expanduser()
    return str(local.resolve()) if local.exists() else _hub_id(model.tokenizer, "tokenizer")


def load_tokenizer(model: Model) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model. Raises ModelError when it cannot be had or is not a fast one (offsets are needed)."""
    from transformers import AutoTokenizer

    place = _tokenizer_place(model)
    revision = model.revision if model.tokenizer is None else None  # the revision is of the model's repository
    with _explained(place):
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {place} has no fast version, and token offsets come from that")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {place} has no eos_token: set one in its tokenizer_config.json")
    return tokenizer


def load_config(model: Model) -> Any:
    """The config of a model. Raises ModelError."""
    from transformers import AutoConfig

    place = resolve_path(model.path)
    with _explained(place):
        return AutoConfig.from_pretrained(place, revision=model.revision)


def load_model(model: Model, device: str, attention: str | None = None) -> "PreTrainedModel":
    """The language model on a device, in `model.dtype` (auto is as stored): a decoder, or an encoder and a decoder.

    `attention` names an attention implementation; None leaves the choice to transformers. Raises ModelError.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    place, config = resolve_path(model.path), load_config(model)
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    dtype: Any = model.dtype if model.dtype == "auto" else getattr(torch, model.dtype)
    with _explained(place), without_progress_bar():
        if model.from_scratch:
            float_type = torch.float32 if dtype == "auto" else dtype
            made = kind.from_config(config, dtype=float_type, attn_implementation=attention)
            return made.to(device)
        loaded: Any = kind.from_pretrained(place, revision=model.revision, dtype=dtype, attn_implementation=attention)
        return loaded.to(device)


def is_adapted(model: Any) -> bool:
    """Whether a model is wrapped by peft."""
    return hasattr(model, "peft_config")


def base_of(model: Any) -> Any:
    """The transformers model, which peft may have wrapped."""
    return model.get_base_model() if is_adapted(model) else model


@contextlib.contextmanager
def _explained(place: str) -> Iterator[None]:
    """Turn what transformers raises for a missing or broken model into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        first = next(line for line in [*str(error).splitlines(), type(error).__name__] if line.strip())
        if Path(place).exists():
            raise ModelError(f"{place} cannot be loaded: {first}") from error
        raise ModelError(
            f"{place} is neither a folder here (in {Path.cwd()}) nor can it be loaded from the hub: {first}"
        ) from error


@contextlib.contextmanager
def without_progress_bar() -> Iterator[None]:
    """Keep transformers' bars for reading and writing shards off the screen."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
