"""Vectors around random matrices that all layers share (arXiv 2310.11454), by peft."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.adapters._peft import Continued


class VeRA(Continued):
    """peft's VeRA: two vectors a layer are trained, and the matrices between them are random and frozen."""

    learning_rate: ClassVar[float] = 4e-3
    kind: ClassVar[str] = "VeraConfig"

    r: Annotated[int, Field(gt=0)] = 256
    """Rank of the shared matrices; it costs one number a layer."""
    vera_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the update's inputs that are zeroed in training."""
    d_initial: Annotated[float, Field(gt=0)] = 0.1
    """What the vector between both matrices begins with."""
    projection_prng_key: Annotated[int, Field(ge=0)] = 0
    """Seed of the shared matrices."""
    save_projection: bool = True
    """Save the shared matrices too, so that no machine has to draw them again."""

    def options(self, model: Any) -> dict[str, Any]:
        """The options of peft's VeraConfig."""
        names = ("r", "vera_dropout", "d_initial", "projection_prng_key", "save_projection")
        return {name: getattr(self, name) for name in names}
