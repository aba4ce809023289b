"""Schedule-free AdamW (arXiv 2405.15682): a mean of the weights in place of a learning rate that falls."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.optimizers.adamw import Beta
from tunesmith.seams import Companion, Optimizer

if TYPE_CHECKING:
    import torch


class ScheduleFree(Optimizer):
    """Trains at a point between the fast weights and their mean; evaluations and the end of the run take the mean."""

    schedulers: ClassVar[tuple[str, ...]] = ("constant_with_warmup", "constant")  # the mean is what others do
    averages: ClassVar[bool] = True

    betas: tuple[Annotated[float, Field(gt=0, lt=1)], Beta] = (0.9, 0.999)
    """Share of the mean in the point that is trained at, and decay of the mean of squares."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the mean of squares."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """Schedule-free AdamW over the trainable parameters, which are then the points that are trained at."""
        from tunesmith.optimizers._groups import parameter_groups
        from tunesmith.optimizers._schedule_free import AveragedAdamW

        groups = parameter_groups(self, model, factors)
        return AveragedAdamW(groups, lr=self.rate(), betas=self.betas, eps=self.epsilon)

    def companion(self, built: "torch.optim.Optimizer", model: Any, num_steps: int) -> Companion | None:
        """What has the mean of the weights for evaluations and the end."""
        from tunesmith.optimizers._schedule_free import Averaged, AveragedAdamW

        assert isinstance(built, AveragedAdamW), "made by build"
        return Averaged(built)

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """The fast weights, and a mean of squares."""
        return 2 * parameter.nbytes
