"""Train some of the model's own weights and leave the others as they are."""

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from tunesmith.errors import RecipeError
from tunesmith.seams import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Freeze(Adapter):
    """The last or first layers, or the parameters whose names match."""

    learning_rate: ClassVar[float] = 2e-5
    beside: ClassVar[bool] = False

    num_layers: int = 2
    """Decoder layers to train: the last n when positive, the first n when negative, none when 0."""
    train_matching: Annotated[str, Field(min_length=1)] | None = None
    """Regular expression; parameters whose name contains a match are trained too: norm|mlp. A head that is the
    embeddings (tied) has two names, and matches by both."""
    embeddings: bool = False
    """Train the embeddings of words too."""
    head: bool = False
    """Train the head that gives words too; where it is the embeddings (tied), both are to be said."""

    @model_validator(mode="after")
    def _valid_pattern(self) -> "Freeze":
        try:
            re.compile(self.train_matching or "")
        except re.error as error:
            raise ValueError(f"train_matching={self.train_matching!r} is not a regular expression: {error}") from None
        return self

    def apply(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """The model with only the chosen parameters requiring gradients, and those of a head for classes or a reward.

        Raises RecipeError when there are none.
        """
        depth = model.config.get_text_config().num_hidden_layers
        if abs(self.num_layers) > depth:
            raise RecipeError(f"adapter.num_layers: the model has {depth} layers (it was {self.num_layers})")
        first, last = (depth - self.num_layers, depth) if self.num_layers >= 0 else (0, -self.num_layers)
        chosen = self._modules(model)
        pattern = re.compile(self.train_matching) if self.train_matching else None
        model.requires_grad_(False)
        for name, parameter in model.named_parameters(remove_duplicate=False):  # a tied one has two names
            number = re.search(r"\.(\d+)\.", name)
            in_layers = number is not None and first <= int(number[1]) < last
            matches = pattern is not None and pattern.search(name) is not None
            if in_layers or matches or name.startswith(chosen):
                parameter.requires_grad_(True)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise RecipeError(
                f"adapter: nothing is trained with num_layers {self.num_layers} and train_matching "
                f"{self.train_matching!r}: choose layers, or a part of a parameter's name"
            )
        return model

    def _modules(self, model: "PreTrainedModel") -> tuple[str, ...]:
        """How the names of parameters begin that are trained whole: of embeddings, and of heads."""
        from tunesmith.engine.model import has_words, heads_of

        words: Any = model.get_output_embeddings()
        embeddings: Any = model.get_input_embeddings()
        pattern = re.compile(self.train_matching or "(?!)")  # by default one that nothing matches
        named = {module: pattern.search(f"{name}.weight") is not None for name, module in model.named_modules()}
        tied = words is not None and words.weight is embeddings.weight
        if tied and (self.head or named[words]) != (self.embeddings or named[embeddings]):
            raise RecipeError(
                f"adapter: the head of {type(model).__name__} is its embeddings (tied), one matrix that is trained as "
                "both or not at all: set adapter.head and adapter.embeddings alike, or let adapter.train_matching "
                f"name both or none (it was {self.train_matching!r})"
            )
        chosen = [embeddings] if self.embeddings else []
        chosen += [words] if self.head and words is not None else []
        found = [f"{name}." for name, module in model.named_modules() if any(module is one for one in chosen)]
        return (*found, *(() if has_words(model) else (f"{name}." for name in heads_of(model))))
