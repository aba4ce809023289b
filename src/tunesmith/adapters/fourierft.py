"""Updates given by a few of their frequencies (arXiv 2405.03003), by peft."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.adapters._peft import Continued


class FourierFT(Continued):
    """peft's FourierFT: the update is the inverse Fourier transform of some trained numbers at random places."""

    learning_rate: ClassVar[float] = 1e-2
    kind: ClassVar[str] = "FourierFTConfig"

    n_frequency: Annotated[int, Field(gt=0)] = 1000
    """Trained numbers a layer."""
    scaling: Annotated[float, Field(gt=0)] = 150.0
    """Scale of the update; 300 is usual for chat models."""
    random_loc_seed: Annotated[int, Field(ge=0)] = 777
    """Seed of the places."""

    def options(self, model: Any) -> dict[str, Any]:
        """The options of peft's FourierFTConfig."""
        return {name: getattr(self, name) for name in ("n_frequency", "scaling", "random_loc_seed")}
