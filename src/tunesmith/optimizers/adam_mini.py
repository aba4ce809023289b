"""Adam-mini (arXiv 2406.16793): one second moment for a row, or for the rows of a head."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tunesmith.optimizers.adamw import AdamW

if TYPE_CHECKING:
    import torch

BY_HEAD = re.compile(r"\b(q_proj|k_proj|query|key|q|k)\.weight$")


class AdamMini(AdamW):
    """Adam with a first moment of every value; queries and keys have a second of each head, all else of each row."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """Adam-mini over the trainable parameters."""
        from tunesmith.optimizers._adam_mini import OneRateABlock
        from tunesmith.optimizers._groups import divided_groups, head_dim, parameter_groups

        dim = head_dim(model)
        groups = parameter_groups(self, model, factors)
        groups = divided_groups(groups, model, "rows", lambda name, parameter: rows_of_a_block(name, parameter, dim))
        return OneRateABlock(groups, lr=self.rate(), betas=self.betas, eps=self.epsilon)

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """One mean of every value, and a number for each block of rows."""
        rows = rows_of_a_block(name, parameter, head_dim)
        blocks = parameter.numel() // parameter.shape[-1] // rows if rows else 1
        return parameter.nbytes + blocks * parameter.itemsize


def rows_of_a_block(name: str, parameter: "torch.Tensor", head_dim: int) -> int:
    """How many rows of a matrix share a second moment; 0: all of a vector."""
    if parameter.ndim < 2:
        return 0
    return head_dim if BY_HEAD.search(name) and parameter.shape[-2] % head_dim == 0 else 1
