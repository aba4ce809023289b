"""Low-rank updates multiplied, number by number, with the frozen weight (HiRA, ICLR 2025), by peft."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.adapters._peft import Continued


class HiRA(Continued):
    """peft's HiRA: W * (B A), whose rank is as high as the weight's own."""

    learning_rate: ClassVar[float] = 2e-4
    kind: ClassVar[str] = "HiraConfig"

    r: Annotated[int, Field(gt=0)] = 32
    """Rank of the factor."""
    hira_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the update's inputs that are zeroed in training."""

    def options(self, model: Any) -> dict[str, Any]:
        """The options of peft's HiraConfig."""
        return {name: getattr(self, name) for name in ("r", "hira_dropout")}
