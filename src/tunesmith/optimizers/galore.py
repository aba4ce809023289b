"""GaLore (arXiv 2403.03507): Adam in the subspace of the largest singular vectors of a matrix's gradient."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.optimizers.adamw import AdamW

if TYPE_CHECKING:
    import torch


class GaLore(AdamW):
    """Matrices of layers with more than `rank` rows and columns in a subspace; what else there is by AdamW."""

    learning_rate_factor: ClassVar[float] = 4.0  # the paper's scale makes steps of a quarter

    rank: Annotated[int, Field(gt=0)] = 128
    """Dimensions of the subspace."""
    update_proj_gap: Annotated[int, Field(gt=0)] = 200
    """Steps after which the subspace is that of the new gradient."""
    scale: Annotated[float, Field(gt=0)] = 0.25
    """What the updates out of the subspace are multiplied by."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """One optimizer that does both."""
        from tunesmith.optimizers._groups import divided_groups, is_hidden_matrix, parameter_groups
        from tunesmith.optimizers._low_rank import InSubspace

        groups = parameter_groups(self, model, factors)
        groups = divided_groups(groups, model, "low_rank", lambda name, one: is_hidden_matrix(name, one, self.rank))
        options = self.model_dump(include={"betas", "rank", "update_proj_gap", "scale"})
        return InSubspace(groups, lr=self.rate(), eps=self.epsilon, **options)

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """Two means in the subspace and the subspace, or two means of every value."""
        from tunesmith.optimizers._groups import is_hidden_matrix

        if not is_hidden_matrix(name, parameter, rank=self.rank):
            return 2 * parameter.nbytes
        short, long = sorted(parameter.shape[-2:])
        return parameter.nbytes // (short * long) * self.rank * (short + 2 * long)
