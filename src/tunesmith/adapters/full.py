"""Train every weight."""

from typing import TYPE_CHECKING, ClassVar

from tunesmith.seams import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Full(Adapter):
    """Every weight of the model is trained and saved."""

    learning_rate: ClassVar[float] = 2e-5
    beside: ClassVar[bool] = False

    def apply(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """The model as it is, every parameter requiring gradients."""
        return model.requires_grad_(True)
