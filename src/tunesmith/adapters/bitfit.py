"""Train the biases alone (arXiv 2106.10199)."""

from typing import TYPE_CHECKING, ClassVar

from tunesmith.errors import RecipeError
from tunesmith.seams import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BitFit(Adapter):
    """The model's own biases are trained, those of norms too. The model is saved whole."""

    learning_rate: ClassVar[float] = 1e-3
    beside: ClassVar[bool] = False

    def apply(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """The model with only its biases requiring gradients, and a head for classes or a reward.

        Raises RecipeError when it has none.
        """
        from tunesmith.engine.model import has_words, heads_of

        heads = () if has_words(model) else tuple(f"{name}." for name in heads_of(model))
        biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
        if not biases:
            raise RecipeError(
                f"adapter: {type(model).__name__} has no biases here, so bitfit trains nothing: adapter=layernorm "
                "trains its norms, which are about as few weights"
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in biases or name.startswith(heads))
        return model
