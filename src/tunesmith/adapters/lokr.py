"""Updates that are a Kronecker product of a small matrix and a low-rank one (arXiv 2309.14859), by peft."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.adapters._peft import SHAPES, Continued


class LoKr(Continued):
    """peft's LoKr: fewer weights than LoRA, and no low rank."""

    learning_rate: ClassVar[float] = 1e-3
    kind: ClassVar[str] = "LoKrConfig"
    not_on: ClassVar[Mapping[str, str]] = SHAPES

    r: Annotated[int, Field(gt=0)] = 8
    """Rank of the larger factor."""
    alpha: Annotated[float, Field(gt=0)] = 8
    """Scale of the update: alpha / r."""
    decompose_factor: Annotated[int, Field(ge=-1)] = -1
    """Size of the smaller factor; -1 is the nearest to a square."""
    decompose_both: bool = False
    """Have the smaller factor of low rank too."""
    rank_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the update's rows that are zeroed in training."""

    def options(self, model: Any) -> dict[str, Any]:
        """The options of peft's LoKrConfig."""
        names = ("r", "alpha", "decompose_factor", "decompose_both", "rank_dropout")
        return {name: getattr(self, name) for name in names}
