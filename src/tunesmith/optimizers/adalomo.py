"""AdaLomo (arXiv 2310.10195): LOMO with a second moment of rows and columns, and updates relative to the weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.seams import Optimizer

if TYPE_CHECKING:
    import torch


class AdaLomo(Optimizer):
    """Adafactor's moment, each update scaled to the size of its weights; made for train.release_gradients=true."""

    learning_rate_factor: ClassVar[float] = 25.0  # the paper tunes instructions with 5e-4, relative to the weights

    decay_rate: Annotated[float, Field(le=0)] = -0.8
    """Exponent of the step in the decay of the second moment: 1 - step ** decay_rate."""
    clip_threshold: Annotated[float, Field(gt=0)] = 1.0
    """Root mean square that an update is scaled down to, before the size of the weights comes in."""
    clip_grad_value: Annotated[float, Field(gt=0)] | None = None
    """Largest size of a gradient's values. None: any."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """AdaLomo over the trainable parameters."""
        from tunesmith.optimizers._groups import parameter_groups
        from tunesmith.optimizers._lomo import RowsAndColumns

        options = self.model_dump(include={"decay_rate", "clip_threshold", "clip_grad_value"})
        return RowsAndColumns(parameter_groups(self, model, factors), lr=self.rate(), **options)

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """Means of rows and columns, or of every value of a vector."""
        if parameter.ndim < 2:
            return parameter.nbytes
        return parameter.nbytes // parameter.shape[-1] + parameter.nbytes // parameter.shape[-2]
