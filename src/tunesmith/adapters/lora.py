"""Low-rank updates beside frozen weights (arXiv 2106.09685), by peft."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.seams import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PEFTS_HEADS = ("classifier", "score")  # which peft trains whole itself where values are learned


class LoRA(Adapter):
    """peft's LoRA. The options have peft's names and meaning."""

    learning_rate: ClassVar[float] = 2e-4
    beside: ClassVar[bool] = True

    r: Annotated[int, Field(gt=0)] = 16
    """Rank of each update."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32
    """Scale of the update: lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the update's inputs that are zeroed in training."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers to adapt: names, a regular expression, or all-linear (every linear layer but the head). A head that gives
    classes or a reward is trained whole beside them."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained and saved whole beside the updates."""
    trainable_token_indices: tuple[int, ...] = ()
    """Tokens whose rows of embeddings and head are trained by themselves; those of model.new_tokens are anyway."""

    def training_rows(self, rows: Sequence[int]) -> "LoRA":
        """The adapter that also trains these rows of the embeddings, and of the head."""
        return self.model_copy(update={"trainable_token_indices": (*self.trainable_token_indices, *rows)})

    def apply(self, model: "PreTrainedModel") -> Any:
        """The model wrapped by peft, with only the updates requiring gradients."""
        from peft import LoraConfig, get_peft_model

        from tunesmith.engine.compat import peft_warnings
        from tunesmith.engine.model import has_words, heads_of
        from tunesmith.errors import RecipeError

        heads = () if has_words(model) else heads_of(model)
        whole = [name.rpartition(".")[2] for name in heads]
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules),
            modules_to_save=[*self.modules_to_save, *(name for name in whole if name not in PEFTS_HEADS)] or None,
            trainable_token_indices=self._rows(model),
            task_type=_task(model, bool(whole)),
        )
        try:
            with peft_warnings():
                return get_peft_model(model, config)
        except ValueError as error:
            raise RecipeError(f"adapter.target_modules: {str(error).splitlines()[0]}") from error

    def _rows(self, model: "PreTrainedModel") -> dict[str, list[int]] | None:
        """The trained rows by the names of the embeddings and of the head, but of those that are trained whole."""
        from tunesmith.engine import new_tokens

        if not self.trainable_token_indices:
            return None
        found = new_tokens.places(model, self.trainable_token_indices)
        return {n: rows for n, rows in found.items() if n.rpartition(".")[2] not in self.modules_to_save} or None


def _task(model: Any, values: bool) -> str:
    """What peft calls the task of a model."""
    if values:
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
