"""Updates that are a product, number by number, of two low-rank ones (arXiv 2108.06098), by peft."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.adapters._peft import SHAPES, Continued


class LoHa(Continued):
    """peft's LoHa: the rank of an update is up to the square of r."""

    learning_rate: ClassVar[float] = 2e-4
    kind: ClassVar[str] = "LoHaConfig"
    not_on: ClassVar[Mapping[str, str]] = SHAPES

    r: Annotated[int, Field(gt=0)] = 8
    """Rank of each of both factors."""
    alpha: Annotated[float, Field(gt=0)] = 8
    """Scale of the update: alpha / r."""
    rank_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the update's rows that are zeroed in training."""

    def options(self, model: Any) -> dict[str, Any]:
        """The options of peft's LoHaConfig."""
        return {name: getattr(self, name) for name in ("r", "alpha", "rank_dropout")}
