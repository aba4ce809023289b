"""One small matrix a layer, shared by shards of its inputs (MiSS, arXiv 2409.15371), by peft."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.adapters._peft import Continued


class MiSS(Continued):
    """peft's MiSS: sums of r-wide pieces of an input, times one trained matrix [r, O]; it begins with none."""

    learning_rate: ClassVar[float] = 2e-4
    kind: ClassVar[str] = "MissConfig"

    r: Annotated[int, Field(gt=0)] = 64
    """Width of the pieces that an input is cut into."""
    miss_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the update's inputs that are zeroed in training."""

    def options(self, model: Any) -> dict[str, Any]:
        """The options of peft's MissConfig."""
        return {name: getattr(self, name) for name in ("r", "miss_dropout")}
