"""Learned keys and values before every sequence, in every layer (prefix tuning, arXiv 2101.00190), by peft."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from tunesmith.adapters._prompts import VirtualTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Prefix(VirtualTokens):
    """peft's prefix tuning. The options have peft's names and meaning. The keys and values are saved."""

    learning_rate: ClassVar[float] = 1e-2

    prefix_projection: bool = False
    """Make the keys and values by a small network of two layers, as the paper does where they train badly alone."""
    encoder_hidden_size: Annotated[int, Field(gt=0)] | None = None
    """Its inner size, with prefix_projection. None: the model's hidden size."""

    @model_validator(mode="after")
    def _size_of_a_network(self) -> "Prefix":
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ValueError("encoder_hidden_size is of the network of prefix_projection=true: set it, or leave it out")
        return self

    def apply(self, model: "PreTrainedModel") -> Any:
        """The model wrapped by peft, with only the prefix requiring gradients."""
        from peft import PrefixTuningConfig

        config = PrefixTuningConfig(
            prefix_projection=self.prefix_projection,
            encoder_hidden_size=self.encoder_hidden_size or model.config.get_text_config().hidden_size,
            **self.common(),
        )
        return self.with_prompt(model, config)
