"""APOLLO (arXiv 2412.05270): gradients scaled a channel at a time as Adam in a random subspace says."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.optimizers.adamw import AdamW

if TYPE_CHECKING:
    import torch


class Apollo(AdamW):
    """Matrices of layers with more than `rank` rows and columns by APOLLO; what else there is by AdamW."""

    by_channel: ClassVar[bool] = True  # a scale for each channel, or one for the whole matrix

    rank: Annotated[int, Field(gt=0)] = 256
    """Dimensions of the random subspace."""
    update_proj_gap: Annotated[int, Field(gt=0)] = 200
    """Steps after which the subspace is another one."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """What the scaled gradients are multiplied by."""
    norm_growth: Annotated[float, Field(gt=1)] = 1.01
    """How many times longer an update of a matrix may be than the one before."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """One optimizer that does both. Subspaces follow from the number of a matrix, the same on all ranks."""
        from tunesmith.optimizers._groups import divided_groups, is_hidden_matrix, parameter_groups
        from tunesmith.optimizers._low_rank import ScaledGradients

        groups = parameter_groups(self, model, factors)
        groups = divided_groups(groups, model, "low_rank", lambda name, one: is_hidden_matrix(name, one, self.rank))
        options = self.model_dump(include={"betas", "rank", "update_proj_gap", "scale", "norm_growth"})
        return ScaledGradients(groups, lr=self.rate(), eps=self.epsilon, by_channel=self.by_channel, **options)

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """Two means in the subspace and a norm, or two means of every value."""
        from tunesmith.optimizers._groups import is_hidden_matrix

        if not is_hidden_matrix(name, parameter, rank=self.rank):
            return 2 * parameter.nbytes
        return parameter.nbytes // min(parameter.shape[-2:]) * 2 * self.rank + parameter.itemsize
