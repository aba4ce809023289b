"""Loading a model and its tokenizer; the only `from_pretrained` of weights in the package."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import extras
from tunesmith.engine import hub, quantised, rope
from tunesmith.errors import ModelError, near
from tunesmith.recipe import Model
from tunesmith.types import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUILTIN = "builtin:"
GGUF = ".gguf"
SAFE: dict[str, Any] = {"trust_remote_code": False}  # unsaid, transformers asks on the terminal, and a pipe may say yes


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
        lacks = None if (local / "config.json").is_file() else "it has no config.json"
        if lacks and (packed := _packed_file(local)) is not None:
            return packed
        if lacks or (local / "adapter_config.json").is_file():
            reason = lacks or "it is an adapter's"
            raise ModelError(f"{path} is not a model folder: {reason}{_way_to_one(local)}")
        return str(local.resolve())  # an adapter names its base by it, and is loaded from other folders
    return _hub_id(path, "model")


def _packed_file(place: Path) -> str | None:
    """The .gguf file that a path says, or the one of a folder. Raises ModelError where there are several."""
    if place.is_file():
        return str(place.resolve()) if place.suffix == GGUF else None
    found = sorted(place.glob(f"*{GGUF}"))
    if len(found) > 1:
        raise ModelError(f"{place} has {len(found)} {GGUF} files: name one of them, as {found[0]}")
    return str(found[0].resolve()) if found else None


def _named(place: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """What names a model to transformers' `from_pretrained`, which is kept from a hub that cannot be reached.

    Raises MissingExtra without what reads a .gguf file.
    """
    if not place.endswith(GGUF):
        cached = not Path(place).exists() and hub.unreachable(place) is not None
        return place, SAFE | {"revision": revision} | ({"local_files_only": True} if cached else {})
    extras.need(f"{place}", "gguf")
    return str(Path(place).parent), SAFE | {"gguf_file": Path(place).name}


def read_config(place: str | Path, **options: Any) -> Any:
    """The config of a folder or hub id as transformers reads it. Raises ModelError."""
    from transformers import AutoConfig

    with _explained(str(place)):
        return AutoConfig.from_pretrained(place, **SAFE | options)


def _way_to_one(folder: Path) -> str:
    """What makes a model folder of one that is something else, where it is."""
    if (folder / "record.json").is_file() or (folder / "adapter_config.json").is_file():
        return f". Make one of it with: tunesmith export {folder} {folder}-merged type=merged"
    return ""


def _hub_id(path: str, kind: str) -> str:
    """A path that is no folder here, when it can be a hub id."""
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(f"there is no {kind} folder {path}")
    return path


def _tokenizer_place(model: Model) -> str:
    """The folder or hub id of a model's tokenizer, which may lie in a folder without a config.json."""
    if model.tokenizer is None or model.tokenizer.startswith(BUILTIN):
        place = resolve_path(model.tokenizer or model.path)
        beside = Path(place).parent
        return str(beside) if place.endswith(GGUF) and (beside / "tokenizer_config.json").is_file() else place
    local = Path(model.tokenizer).expanduser()
    return str(local.resolve()) if local.exists() else _hub_id(model.tokenizer, "tokenizer")


def load_tokenizer(model: Model) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model. Raises ModelError when it cannot be had or is not a fast one (offsets are needed)."""
    from transformers import AutoTokenizer

    place = _tokenizer_place(model)
    revision = model.revision if model.tokenizer is None else None  # the revision is of the model's repository
    with _explained(place):
        name, options = _named(place, revision)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {place} has no fast version, and token offsets come from that")
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise ModelError(f"the tokenizer of {place} has no eos_token: set one in its tokenizer_config.json")
    if tokenizer.eos_token_id is None:  # an encoder's: its texts end with what separates them
        tokenizer.eos_token = tokenizer.sep_token
    if model.added():
        from tunesmith.engine import new_tokens

        return new_tokens.add(model, tokenizer)
    return tokenizer


def with_padding(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """A tokenizer that can fill up batches, as users of a model with a head of its own do; with its end, if need be."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(model: Model, positions: Any | None = None) -> Any:
    """The config of a model, with `model.rope_scaling` in it or the rotary positions of the config `positions`.

    Raises:
        ModelError: it cannot be had, or the model has no rotary positions to stretch.
        RecipeError: the scaling does not go with the model.
    """
    place = resolve_path(model.path)
    name, options = _named(place, model.revision)
    config = read_config(name, **options)
    rope.scale(config, model.rope_scaling)
    if positions is not None:
        rope.take(config, positions)
    return config


def load_model(
    model: Model,
    device: str,
    attention: str | None = None,
    head: Head | None = None,
    pad: int | None = None,
    positions: Any | None = None,
    held: Any | None = None,
    said: Any | None = None,
) -> "PreTrainedModel":
    """The causal language model, or the one with another head, on a device, in `model.dtype` (auto is as stored).

    `attention` names an attention implementation; None leaves the choice to transformers. A head that the stored model
    lacks is new, by the random numbers of now; `pad` is the token that fills a batch for it. `positions` is a config
    whose rotary positions the model gets. `held` is transformers' config of how linear layers are held; None: as
    `model.quantization` says. `said` stands in for the stored config, as that of a .gguf file, of which transformers
    reads a part. Raises ModelError, RecipeError, MissingExtra.
    """
    import torch

    place, config = resolve_path(model.path), said or load_config(model, positions)
    dtype: Any = model.dtype if model.dtype == "auto" else getattr(torch, model.dtype)
    kind = kind_of(config, head)
    options: dict[str, Any] = {"attn_implementation": attention}
    scaled = model.rope_scaling.rope_type is not None or positions is not None
    quantisation = quantised.load_options(model, place, config, device, held)
    with _explained(place), without_progress_bar(), contextlib.nullcontext() if head is None else _without_report():
        if said is not None or head is not None or model.from_scratch or scaled or model.dropout is not None:
            options["config"] = config
        if model.dropout is not None:
            _put_dropout(model.dropout, config, place)
        if head is not None:
            _put(head, pad, config)
        found: dict[str, Any] = {"missing_keys": ()}
        if model.from_scratch:
            loaded = kind.from_config(dtype=torch.float32 if dtype == "auto" else dtype, **options)
        else:
            if head is not None:
                _keep_plain(kind, config, quantisation.get("quantization_config") or quantised.stored_words(config))
            name, named = _named(place, model.revision)
            options |= named | quantisation
            loaded, found = kind.from_pretrained(name, dtype=dtype, output_loading_info=True, **options)
    if head is not None:
        _refuse_missing(loaded, found["missing_keys"], place)
    elif quantised.held_in(loaded) in quantised.READ:
        quantised.refuse_missing(loaded, found["missing_keys"], place)
    if model.added():
        from tunesmith.engine import new_tokens

        new_tokens.give_rows(loaded, model, load_tokenizer(model))
    if place.endswith(GGUF):
        _complete(loaded, Path(place))
    if quantised.held_in(loaded) is None:
        return loaded.to(device)
    quantised.keep_numbers(loaded)
    return loaded


def kind_of(config: Any, head: Head | None) -> Any:
    """The class of a model with a head, or of one that says words."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    if head is not None:
        return AutoModelForTokenClassification if head.tokens else AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _complete(loaded: Any, file: Path) -> None:
    """Give the model of a .gguf file its name, by which an adapter finds it, and the ends of answers beside it."""
    from transformers import GenerationConfig

    loaded.name_or_path = loaded.config.name_or_path = str(file)
    if (file.parent / "generation_config.json").is_file():
        loaded.generation_config = GenerationConfig.from_pretrained(str(file.parent))


def _keep_plain(kind: Any, config: Any, held: Any | None) -> None:
    """Have a new head stay as it is: transformers (5.23) rounds one that has a bias, before it has any numbers."""
    import torch

    if held is None:
        return
    said = held if isinstance(held, dict) else vars(held)
    name = "llm_int8_skip_modules" if "llm_int8_skip_modules" in said else "modules_to_not_convert"
    with torch.device("meta"):
        heads = heads_of(kind.from_config(config))
    said[name] = [*(said.get(name) or ()), *heads]


def widened_model(model: Any, place: str) -> Any:
    """A loaded model with plain weights of the numbers that those of few bits stand for. Raises ModelError."""
    with _without_report():
        return quantised.widen(model, place)


def _put_dropout(share: float, config: Any, place: str) -> None:
    """Set every dropout that a model's config has. Raises ModelError where there is none to set."""
    text = config.get_text_config()
    found = [
        name
        for name, value in text.to_dict().items()
        if re.search("dropout|pdrop", name) and type(value) in (int, float)
    ]
    if share and not found:
        raise ModelError(f"model.dropout: {share} cannot be had, since the config of {place} has no dropout")
    for name in found:
        setattr(text, name, share)


def _put(head: Head, pad: int | None, config: Any) -> None:
    """Make a model's config one with a head. Raises ModelError."""
    if config.is_encoder_decoder:
        raise ModelError(
            f"a {config.model_type} model has an encoder and a decoder, and classes and rewards are learned by models "
            "of one of them: choose another model"
        )
    config.id2label = dict(enumerate(head.names))
    config.label2id = {name: number for number, name in enumerate(head.names)}
    config.problem_type = head.problem_type
    if pad is not None:
        config.get_text_config().pad_token_id = pad


def _refuse_missing(model: Any, missing: Iterable[str], place: str) -> None:
    """Raise ModelError when a stored model lacks more than its head."""
    heads = tuple(f"{name}." for name in heads_of(model))
    lacking = sorted(name for name in missing if not name.startswith(heads))
    if lacking:
        raise ModelError(f"{place} cannot be trained with a new head: it lacks weights of the model, as {lacking[0]}")


def num_rows(model: Any) -> int:
    """How many tokens a model has embeddings for."""
    embedding: Any = base_of(model).get_input_embeddings()
    return int(getattr(embedding, "original_module", embedding).num_embeddings)  # peft may have wrapped it


def has_words(model: Any) -> bool:
    """Whether a model's head gives words, and not values of a sequence."""
    return base_of(model).get_output_embeddings() is not None


def says_tokens(model: Any) -> bool:
    """Whether a model's head gives values of each token."""
    return type(base_of(model)).__name__.endswith("ForTokenClassification")


def heads_of(model: Any) -> tuple[str, ...]:
    """The modules that make values of what a model's body says, in their order: all that stands outside of it.

    A `pooler`, which prepares a sequence for its head, is one of them: many stored encoders have none.
    """
    base = base_of(model)
    body = base.base_model_prefix
    poolers = [f"{body}.pooler"] if getattr(getattr(base, body), "pooler", None) is not None else []
    outside = [name for name, child in base.named_children() if name != body and any(True for _ in child.parameters())]
    return (*poolers, *outside)


def keep_heads_exact(model: Any) -> None:
    """Have a new head in float32, also behind a body of half precision: what is trained whole needs its small steps."""
    for name in heads_of(model):
        base_of(model).get_submodule(name).float().register_forward_pre_hook(_as_float)


def _as_float(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].float(), *args[1:])


def head_modules(model: Any) -> set[Any]:
    """The modules of a model's head: those that make words, or values."""
    base = base_of(model)
    if has_words(model):
        return set(base.get_output_embeddings().modules())
    return {module for name in heads_of(model) for module in base.get_submodule(name).modules()}


def is_adapted(model: Any) -> bool:
    """Whether a model is wrapped by peft."""
    return hasattr(model, "get_base_model")


def num_virtual_tokens(model: Any) -> int:
    """How many tokens peft's prompt learning puts before what a model is given; 0 of one that has none."""
    if not is_adapted(model) or not model.active_peft_config.is_prompt_learning:
        return 0
    return int(model.active_peft_config.num_virtual_tokens)


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
        if next(iter(SAFE)) in str(error):
            raise ModelError(
                f"{place} comes with code of its own, which is not run here: name a model that transformers has a "
                "class for"
            ) from error
        if Path(place).exists():
            raise ModelError(f"{place} cannot be loaded: {first}") from error
        lost = hub.unreachable(place)
        if lost is not None:
            first = f"it cannot be reached ({lost}), and its cache on this machine does not hold the model"
        raise ModelError(
            f"{place} is neither a folder here (in {Path.cwd()}) nor can it be loaded from the hub: {first}"
        ) from error


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from telling of what is meant: a head that is new or left out, weights that are widened."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


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
