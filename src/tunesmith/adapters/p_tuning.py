"""Embeddings before every sequence that a small network makes (P-tuning, arXiv 2103.10385), by peft."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.adapters._prompts import VirtualTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PTuning(VirtualTokens):
    """peft's prompt encoder. The options have peft's names and meaning. What the network makes is saved."""

    learning_rate: ClassVar[float] = 1e-3

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    """The network, of two layers."""
    encoder_hidden_size: Annotated[int, Field(gt=0)] | None = None
    """Its inner size. None: the model's hidden size."""

    def apply(self, model: "PreTrainedModel") -> Any:
        """The model wrapped by peft, with only the network and its inputs requiring gradients."""
        from peft import PromptEncoderConfig

        config = PromptEncoderConfig(
            encoder_reparameterization_type=self.encoder_reparameterization_type,
            encoder_hidden_size=self.encoder_hidden_size or model.config.get_text_config().hidden_size,
            **self.common(),
        )
        return self.with_prompt(model, config)
