"""Learned embeddings before every sequence (prompt tuning, arXiv 2104.08691), by peft."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from tunesmith.adapters._prompts import VirtualTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Prompt(VirtualTokens):
    """peft's prompt tuning. The options have peft's names and meaning."""

    learning_rate: ClassVar[float] = 3e-2

    prompt_tuning_init: Literal["SAMPLE_VOCAB", "RANDOM", "TEXT"] = "SAMPLE_VOCAB"
    """What the virtual tokens begin as: tokens drawn from the vocabulary, random numbers, or those of a text."""
    prompt_tuning_init_text: str | None = None
    """The text, repeated or cut to num_virtual_tokens, in tokens of the tokenizer beside the model."""

    @model_validator(mode="after")
    def _text_for_text(self) -> "Prompt":
        if (self.prompt_tuning_init == "TEXT") != bool(self.prompt_tuning_init_text):
            raise ValueError("prompt_tuning_init=TEXT and prompt_tuning_init_text are set together, or neither")
        return self

    def apply(self, model: "PreTrainedModel") -> Any:
        """The model wrapped by peft, with only the virtual tokens requiring gradients.

        Raises RecipeError when the text cannot be tokenised.
        """
        from peft import PromptTuningConfig

        from tunesmith.errors import RecipeError

        text = {"prompt_tuning_init_text": self.prompt_tuning_init_text, "tokenizer_name_or_path": model.name_or_path}
        try:
            config = PromptTuningConfig(
                prompt_tuning_init=self.prompt_tuning_init,
                **(text if self.prompt_tuning_init == "TEXT" else {}),
                **self.common(),
            )
            return self.with_prompt(model, config)
        except (ValueError, OSError) as error:
            raise RecipeError(f"adapter.prompt_tuning_init: {str(error).splitlines()[0]}") from error
