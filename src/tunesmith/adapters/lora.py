"""Low-rank updates beside frozen weights (arXiv 2106.09685), by peft."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from tunesmith.adapters._peft import ALL_LINEAR, Continued
from tunesmith.component import Component, name_of
from tunesmith.seams import Quantization

UPS = ("lora_B", "lora_embedding_B")
# Beginnings of the ways in which peft makes updates from the frozen weights: two take them out of these, which would
# then be rounded anew; orthogonal makes them of the same type.
FROM_WEIGHTS = ("pissa", "olora", "orthogonal")
BEGINNINGS = "true or gaussian, or on a base that is not in few bits pissa, olora or orthogonal"
NOT_HERE = {
    "loftq": "it fits the update to what rounding takes from weights, and model.quantization keeps none from before it",
    "corda": "it decomposes weights by statistics that a script of peft's prepares beforehand (preprocess_corda)",
    "eva": "it decomposes the inputs that layers have on the rows, which are not known when the adapter is made",
}


class LoRA(Continued):
    """peft's LoRA. The options have peft's names and meaning."""

    learning_rate: ClassVar[float] = 2e-4
    kind: ClassVar[str] = "LoraConfig"

    r: Annotated[int, Field(gt=0)] = 16
    """Rank of each update."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32
    """Scale of the update: lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the update's inputs that are zeroed in training."""
    use_rslora: bool = False
    """Scale of the update: lora_alpha / sqrt(r), so that large ranks learn as fast (arXiv 2312.03732)."""
    use_dora: bool = False
    """Train the length of each row of a weight beside its direction (arXiv 2402.09353); slower."""
    init_lora_weights: (
        bool
        | Literal["gaussian", "pissa", "olora", "orthogonal"]
        | Annotated[str, Field(pattern=r"^pissa_niter_[1-9]\d*$")]
    ) = True
    """What updates begin with: true and gaussian are random and change nothing; orthogonal too; pissa and olora are the
    largest parts of the weights themselves, and are saved as a plain update of twice the rank; pissa_niter_N is pissa
    by N rounds of a quicker decomposition; false is random and does change the model."""
    rank_pattern: dict[str, Annotated[int, Field(gt=0)]] = {}
    """Ranks of layers whose names end with a match of a regular expression: {"layers.0.*q_proj": 64}."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Values of lora_alpha for layers, by names as in rank_pattern."""
    exclude_modules: str | tuple[str, ...] = ()
    """Layers that are not adapted: names, or a regular expression of the whole name."""
    layers_to_transform: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Numbers of the decoder layers to adapt, from 0; all when empty."""
    target_parameters: tuple[str, ...] | None = None
    """Parameters to adapt that are no linear layers, by the ends of their names. None: the fused experts of a mixture,
    where target_modules is all-linear."""
    trainable_token_indices: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Tokens whose rows of embeddings and head are trained, and saved, by themselves; those of model.new_tokens are
    anyway."""
    lora_bias: bool = False
    """Train a bias beside each update; for layers that have one."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] = 1.0
    """What the learning rate of B matrices, which begin with 0, is multiplied by (LoRA+, arXiv 2402.12354): 16, say."""

    def refuses(self, other: Component) -> str | None:
        """Also, on a model in few bits: updates made from its weights, and DoRA where peft loses their scales."""
        if not isinstance(other, Quantization):
            return super().refuses(other)
        if str(self.init_lora_weights).startswith(FROM_WEIGHTS):
            return (
                f"adapter.init_lora_weights: {self.init_lora_weights} is made from frozen weights that are numbers, "
                f"and {name_of(other)} holds them in few bits, rounded: use true or gaussian, or leave "
                "model.quantization out"
            )
        if self.use_dora and name_of(other) == "bnb_8bit":
            return (
                "adapter.use_dora: peft's DoRA loses the scales of weights in bnb_8bit: use "
                "model.quantization=bnb_4bit, or use_dora=false"
            )
        return super().refuses(other)

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _can_begin_so(cls, value: Any) -> Any:
        if isinstance(value, str) and value in NOT_HERE:
            raise ValueError(f"{value} is not for here: {NOT_HERE[value]}. Say {BEGINNINGS}")
        return value

    def options(self, model: Any) -> dict[str, Any]:
        """The options of peft's LoraConfig."""
        own = {"target_modules", "modules_to_save", "start_from", "loraplus_lr_ratio"}
        said = {name: getattr(self, name) for name in type(self).model_fields.keys() - own}
        said |= {name: _listed(said[name]) for name in ("exclude_modules", "layers_to_transform")}
        said["trainable_token_indices"] = self._rows(model)
        said["target_parameters"] = [*(self.target_parameters or self._experts(model))]
        if model.config.tie_word_embeddings and "embed_tokens" in self.modules_to_save:
            said["ensure_weight_tying"] = True
        if self.target_modules == ALL_LINEAR and (self.layers_to_transform or _fused(model)):
            # by names: peft chooses among them alone by number, and of some mixtures takes the router too for all
            said["target_modules"] = _linear_names(model)
        return said

    def training_rows(self, rows: Sequence[int]) -> "LoRA":
        """The adapter that also trains these rows of the embeddings, and of the head."""
        return self.model_copy(update={"trainable_token_indices": (*self.trainable_token_indices, *rows)})

    def apply(self, model: Any) -> Any:
        """The model wrapped by peft. Raises RecipeError and ModelError."""
        from tunesmith.engine import initial, multi_adapter

        adapted = super().apply(model)
        if initial.takes(adapted.peft_config[multi_adapter.active(adapted)]):
            initial.keep(adapted, multi_adapter.active(adapted))
        return adapted

    def begins_elsewhere(self) -> bool:
        """Whether training starts from other answers than the model's own."""
        return super().begins_elsewhere() or self.init_lora_weights is False

    def factors(self, model: Any) -> Mapping[str, float]:
        """LoRA+'s ratio for every B."""
        if self.loraplus_lr_ratio == 1:
            return {}
        each = ((name, one) for name, one in model.named_parameters() if one.requires_grad)
        return {name: self.loraplus_lr_ratio for name, _ in each if any(part in name for part in UPS)}

    def notes(self, model: Any) -> tuple[str, ...]:
        """Which fused experts are adapted, where nobody said."""
        from tunesmith.engine.model import base_of

        found = _fused(base_of(model)) if self._is_open() else ()
        chosen = self._experts(base_of(model))
        if not found:
            return ()
        if not chosen:
            return (
                f"adapter: fused experts stay as they are ({', '.join(found)}): peft adapts them by plain LoRA alone",
            )
        return (f"adapter: fused experts are adapted too, by target_parameters: {', '.join(chosen)}",)

    def _is_open(self) -> bool:
        return self.target_modules == ALL_LINEAR and self.target_parameters is None and self.start_from is None

    def _experts(self, model: Any) -> tuple[str, ...]:
        """Ends of the names of the fused experts that are adapted where nobody said which."""
        special = self.lora_dropout or self.use_dora or self.lora_bias or self.layers_to_transform
        begun = str(self.init_lora_weights).startswith(FROM_WEIGHTS)
        return _fused(model) if self._is_open() and not special and not begun else ()

    def _rows(self, model: Any) -> dict[str, list[int]] | None:
        """The trained rows by the names of the embeddings and of the head, but of those that are trained whole."""
        from tunesmith.engine import new_tokens

        if not self.trainable_token_indices:
            return None
        found = new_tokens.places(model, self.trainable_token_indices)
        return {n: rows for n, rows in found.items() if n.rpartition(".")[2] not in self.modules_to_save} or None


def _listed(value: Any) -> Any:
    """As peft takes it: None for nothing."""
    return value if isinstance(value, str) else [*value] or None


def _fused(model: Any) -> tuple[str, ...]:
    """Ends of the names of parameters that hold a matrix for each expert of a mixture: experts.down_proj."""
    names = (name for name, one in model.named_parameters() if one.ndim == 3 and ".experts." in f".{name}")
    plain = (name.replace(".base_layer", "") for name in names if "lora_" not in name)
    return tuple(sorted({".".join(name.split(".")[-2:]) for name in plain}))


def _linear_names(model: Any) -> list[str]:
    """The names of the linear layers in a model's decoder layers, without their places."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from tunesmith.engine.model import head_modules

    head = head_modules(model)
    found = (name for name, one in model.named_modules() if isinstance(one, (nn.Linear, Conv1D)) and one not in head)
    return sorted({name.rpartition(".")[2] for name in found})
