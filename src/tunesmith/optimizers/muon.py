"""Muon (arXiv 2502.16982): the momentum of a layer's matrix, made orthogonal; AdamW for the rest."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunesmith.optimizers.adamw import AdamW, Beta

if TYPE_CHECKING:
    import torch


class Muon(AdamW):
    """Matrices of layers by Muon; embeddings, heads and vectors by AdamW with `betas`."""

    momentum: Beta = 0.95
    """Decay of the running mean of a matrix's gradient."""
    nesterov: bool = True
    """Look ahead by the momentum."""
    ns_steps: Annotated[int, Field(gt=0, lt=100)] = 5
    """Newton-Schulz iterations, each a step nearer to an orthogonal matrix."""
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """What an update is scaled by. match_rms_adamw: so that its values are as large as AdamW's, and one learning rate
    does for all; original: the root of rows over columns, where that is above 1."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """One optimizer that does both."""
        from tunesmith.optimizers._groups import divided_groups, is_hidden_matrix, parameter_groups
        from tunesmith.optimizers._muon import MuonAndAdamW

        groups = divided_groups(parameter_groups(self, model, factors), model, "matrices", is_hidden_matrix)
        options = self.model_dump(include={"momentum", "nesterov", "ns_steps", "adjust_lr_fn", "betas"})
        return MuonAndAdamW(groups, lr=self.rate(), eps=self.epsilon, **options)

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """One mean of a matrix of a layer, two of what else there is."""
        from tunesmith.optimizers._groups import is_hidden_matrix

        return parameter.nbytes * (1 if is_hidden_matrix(name, parameter) else 2)
