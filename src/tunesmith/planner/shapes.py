"""A model's shape without its weights: its parameters by group, and what of each decoder layer a recipe trains.

The model is made on torch's meta device from its config, and the recipe's own adapter is applied to it there, so an
adapter of any kind is counted by what it does.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.component import name_of
from tunesmith.errors import ModelError, RecipeError
from tunesmith.planner.stored import Bits, stored
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    import torch

SIZES = ("num_attention_heads", "intermediate_size")  # of a config
NEEDED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FROZEN_BITS = {"int8": (8.0, 32.0), "float8": (16.0, 64.0)}  # a weight and a row; float8 has a transposed copy
GROUPS = ("embeddings", "head", "attention", "mlp", "norms", "others")


@dataclass(frozen=True)
class Weight:
    """A parameter as a run holds it; one that is tied to another counts once."""

    name: str
    group: str
    shape: tuple[int, ...]
    item_bytes: int
    trained: bool
    in_layers: bool  # of a linear layer that may be held in fewer bits: not the head's
    stored: Bits | None = None  # what it is stored in, and held in whatever else is said; None: in its dtype

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Bytes in its own dtype."""
        return self.numel * self.item_bytes

    def bytes_in(self, bits: tuple[float, float] | None) -> int:
        """Bytes where linear layers are held in so many bits a weight, and so many more a row; None: as stored."""
        if self.stored is not None:
            return self.stored.nbytes(self.shape[0], self.shape[1])
        if bits is None or not self.in_layers:
            return self.nbytes
        return int((self.numel * bits[0] + self.shape[0] * bits[1]) / 8)


@dataclass(frozen=True)
class Linear:
    """A linear layer [outputs, inputs]."""

    inputs: int
    outputs: int
    rank: int  # of the update beside it, 1 where that is of another kind; 0: none
    trained: bool  # its own weight
    item_bytes: int  # of a number of its weight


@dataclass(frozen=True)
class Layer:
    """A decoder layer: its linear layers by name, its norms, and what of its parameters is trained."""

    linears: Mapping[str, Linear]
    norms: int  # of hidden states
    head_norms: bool  # queries and keys have norms of their own (Qwen3, Gemma 3)
    norms_trained: bool
    trained: int  # numbers
    trained_bytes: int
    below: bool  # whether something before it is trained, so that its input needs a gradient

    @property
    def learns(self) -> bool:
        """Whether there is a backward pass through it."""
        return self.below or self.trained > 0


@dataclass(frozen=True)
class Shape:
    """What memory depends on of a model that a recipe has adapted."""

    hidden: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    vocabulary: int
    words: bool  # the head says words, and not values of sequences or tokens
    tied: bool
    window: int | None
    layers: tuple[Layer, ...]
    weights: tuple[Weight, ...]
    head: Linear
    embedding_trained: bool
    last_norm_trained: bool  # of what enters the head
    buffer_bytes: int
    checkpoints: bool  # whether the model can compute activations again
    stored_in: str | None = None  # few bits (gptq, awq, ...); None: plain weights

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all key heads; values have the same."""
        return self.key_heads * self.head_size

    def counts(self) -> dict[str, dict[str, int]]:
        """Parameters by group: {group: {"all": ..., "trained": ...}}; the groups that the model has."""
        found: dict[str, dict[str, int]] = {}
        for weight in self.weights:
            group = found.setdefault(weight.group, {"all": 0, "trained": 0})
            group["all"] += weight.numel
            group["trained"] += weight.numel * weight.trained
        return {name: found[name] for name in GROUPS if name in found}


def shape_of(recipe: Recipe, config: Any | None = None) -> Shape:
    """The shape of a resolved recipe's adapted model; `config` in place of that of `model.path`.

    Raises:
        ModelError: the config cannot be had, or its layers are not those that are known here.
        RecipeError: the adapter refuses the model, or the objective is of an encoder and a decoder.
    """
    from tunesmith.engine.model import load_config

    if type(recipe.objective).encodes:
        name = name_of(recipe.objective)
        raise RecipeError(f"objective: plan counts decoders alone, and {name} trains an encoder too")
    return of_model(adapted(recipe, load_config(recipe.model) if config is None else config))


def adapted(recipe: Recipe, config: Any) -> Any:
    """The adapted model on the meta device: shapes and dtypes, no numbers."""
    import torch

    with torch.device("meta"):
        return built(recipe, config)


def without_numbers(recipe: Recipe) -> Any:
    """The model that a recipe adapts, on the meta device and not adapted. Raises ModelError."""
    import torch

    from tunesmith.engine.model import load_config

    config = load_config(recipe.model)
    with torch.device("meta"):
        return plain(recipe, config)


def built(recipe: Recipe, config: Any) -> Any:
    """The adapted model of a config, with the head that the objective needs, on torch's device of the moment."""
    return recipe.adapter.apply(plain(recipe, config))


def plain(recipe: Recipe, config: Any) -> Any:
    """The same without the adapter."""
    import torch

    from tunesmith.adapted import head_of
    from tunesmith.engine.model import keep_heads_exact, kind_of

    dtype = getattr(torch, "float32" if recipe.model.dtype == "auto" else recipe.model.dtype)
    config, head = copy.deepcopy(config), head_of(recipe)  # llama_pro lengthens it
    if head is not None:
        config.num_labels = len(head.names)
    model = kind_of(config, head).from_config(config, dtype=dtype)
    if head is not None:
        keep_heads_exact(model)
    return model


def of_model(model: Any) -> Shape:
    """The shape of an adapted model, on whatever device. Raises ModelError for layers of an unknown kind."""
    from tunesmith.engine.model import base_of, has_words, heads_of, num_virtual_tokens

    base = base_of(model)
    config = base.config.get_text_config()
    decoder_layers = _decoder_layers(base)
    missing = [name for name in SIZES if not hasattr(config, name)]
    if missing:
        raise ModelError(f"plan reads {missing[0]} of a model's config, and that of {type(base).__name__} has none")
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    embedding = base.get_input_embeddings()
    trained_before = any(one.requires_grad for one in embedding.parameters()) or num_virtual_tokens(model) > 0
    layers = []
    for module in decoder_layers:
        layers.append(_layer(module, trained_before, type(base).__name__))
        trained_before |= layers[-1].trained > 0
    words = has_words(base)
    head = base.get_output_embeddings() if words else base.get_submodule(heads_of(model)[-1])
    return Shape(
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        key_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_size=head_size,
        inner=config.intermediate_size,
        vocabulary=_weight_of(embedding).shape[0],
        words=words,
        tied=_weight_of(head) is _weight_of(embedding),
        window=getattr(config, "sliding_window", None) if _has_windows(config) else None,
        layers=tuple(layers),
        weights=tuple(weights_of(model)),
        head=_linear(head),
        embedding_trained=any(one.requires_grad for one in embedding.parameters()),
        last_norm_trained=any(one.requires_grad for one in base.get_decoder().norm.parameters()),
        buffer_bytes=sum(one.nbytes for one in model.buffers()),
        checkpoints=bool(base.supports_gradient_checkpointing),
        stored_in=None if (held := stored(base.config)) is None else held.method,
    )


def _has_windows(config: Any) -> bool:
    """Whether a config's window is used: Qwen2's has one and an option that turns it off."""
    kinds = getattr(config, "layer_types", None)
    return "sliding_attention" in kinds if kinds else bool(getattr(config, "sliding_window", None))


def _decoder_layers(base: Any) -> Any:
    decoder = base.get_decoder()
    if not hasattr(decoder, "layers") or not hasattr(decoder, "norm"):
        raise ModelError(
            f"plan knows decoders of layers with {', '.join(NEEDED)}, and {type(base).__name__} has others"
        )
    return decoder.layers


def _layer(module: Any, below: bool, name: str) -> Layer:
    from tunesmith.engine.model import is_adapted

    assert not is_adapted(module)
    linears = {key.rpartition(".")[2]: one for key, one in module.named_modules() if key.endswith(NEEDED)}
    if set(linears) != set(NEEDED) or any("expert" in key for key, _ in module.named_modules()):
        raise ModelError(f"plan knows decoder layers with {', '.join(NEEDED)} once each, and {name} has others")
    norms = [key for key, one in module.named_modules() if type(one).__name__.endswith("RMSNorm")]
    trained = [one for one in module.parameters() if one.requires_grad]
    return Layer(
        linears={key: _linear(linears[key]) for key in NEEDED},
        norms=sum(not key.endswith(("q_norm", "k_norm")) for key in norms),
        head_norms=any(key.endswith("q_norm") for key in norms),
        norms_trained=any(p.requires_grad for key in norms for p in module.get_submodule(key).parameters()),
        trained=sum(one.numel() for one in trained),
        trained_bytes=sum(one.nbytes for one in trained),
        below=below,
    )


def _linear(module: Any) -> Linear:
    """A linear layer, or peft's layer around one."""
    weight = _weight_of(module)
    whole = getattr(module, "modules_to_save", None)
    trained = weight.requires_grad or bool(whole)
    return Linear(weight.shape[1], weight.shape[0], _rank(module), trained, weight.element_size())


def _rank(module: Any) -> int:
    """The rank of what peft has beside a weight: 1 of an update of another kind, which keeps its input too."""
    found = 0
    for name in ("lora_A", "hira_A", "vera_lambda_d"):  # [R, inputs], or [R]
        found += sum(getattr(one, "weight", one).shape[0] for one in getattr(module, name, {}).values())
    beside = hasattr(module, "get_base_layer") and any(one.requires_grad for one in module.parameters())
    return found or int(beside)


def _weight_of(module: Any) -> "torch.Tensor":
    base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    weight: torch.Tensor = getattr(base, "original_module", base).weight
    return weight


def weights_of(model: Any) -> Iterator[Weight]:
    """Every parameter once, by the name it has first."""
    from tunesmith.engine.model import base_of, head_modules

    base, seen = base_of(model), Counter[int]()
    held, places = stored(base.config), {id(one): name for name, one in base.named_parameters()}
    heads = {id(one) for module in head_modules(model) for one in module.parameters()}
    embeddings = {id(one) for one in base.get_input_embeddings().parameters()}
    for name, one in model.named_parameters():
        if not seen[id(one)]:
            linear = one.ndim == 2 and id(one) not in heads | embeddings and not one.requires_grad
            group = "embeddings" if id(one) in embeddings else "head" if id(one) in heads else _group(name)
            bits = held.bits(_layer_name(places.get(id(one), name))) if linear and held is not None else None
            yield Weight(name, group, tuple(one.shape), one.element_size(), one.requires_grad, linear, bits)
        seen[id(one)] += 1


def _layer_name(weight: str) -> str:
    """A layer's name in the model that is stored, by the name of its weight in one that peft has wrapped."""
    return weight.replace(".base_layer", "").replace(".original_module", "").removesuffix(".weight")


def _group(name: str) -> str:
    parts = name.split(".")
    if any(part in ("self_attn", "attention") for part in parts):
        return "attention"
    if any(part in ("mlp", "feed_forward") for part in parts):
        return "mlp"
    return "norms" if any("norm" in part for part in parts) else "others"
