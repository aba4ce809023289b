"""Frozen weights held in fewer bits than they came in, whose products are made in that arithmetic.

Int8: every row of a weight and every token of an input is scaled to -127..127 by its largest number, the products are
summed in int32 and scaled back (arXiv 2208.07339, without its outliers). A gradient takes the row's scales of the
weight first, since it is summed over rows, and then a scale of its own: so one int8 copy serves both directions.

Letters: T tokens, I and O features in and out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.engine.compat import int8_product
from tunesmith.engine.elementwise import Elementwise
from tunesmith.engine.linear import Layer, Product, linear

PART_SUMS = 1 << 22  # int32 sums that exist at once: 16 MB


@dataclass(frozen=True, eq=False)
class Int8:
    """A weight of int8 with a scale for each row."""

    weight: torch.Tensor  # [O, I] int8
    scale: torch.Tensor  # [O] float32
    bias: torch.Tensor | None  # [O]
    ops: Elementwise

    def prepare(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
        """The input [T, I] as int8, the scale of each token [T, 1], and the dtype of results."""
        return *self.ops.quantise(x, None), x.dtype

    def forward(self, prepared: tuple[torch.Tensor, torch.Tensor, torch.dtype]) -> torch.Tensor:
        """X W' + b: [T, O]."""
        x, row, kind = prepared
        found = torch.empty(len(x), len(self.weight), dtype=kind, device=x.device)
        for part in _parts(len(x), len(self.weight)):
            sums = int8_product(x[part], self.weight.T)
            found[part] = self.ops.widen(sums, row[part], self.scale, self.bias, kind)
        return found

    def pull(self, gradient: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
        """Gradient W [T, I], added into a tensor where one is given."""
        given, row = self.ops.quantise(gradient, self.scale)
        found = gradient.new_empty(len(gradient), self.weight.shape[1]) if into is None else into
        for part in _parts(len(gradient), self.weight.shape[1]):
            wide = self.ops.widen(int8_product(given[part], self.weight), row[part], None, None, gradient.dtype)
            if into is None:
                found[part] = wide
            else:
                found[part] += wide
        return found


def _parts(length: int, width: int) -> Iterator[slice]:
    size = max(64, PART_SUMS // width)
    for start in range(0, length, size):
        yield slice(start, start + size)


class FrozenLinear(torch.nn.Linear):
    """A linear layer whose frozen weight is held in another form."""

    scale: torch.Tensor
    ops: Elementwise

    def product(self) -> Product:
        """Its products."""
        return Int8(self.weight, self.scale, self.bias, self.ops)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X W' + b: [.., O]."""
        return linear(x, [Layer(self.product())])[0]


@torch.no_grad()
def hold_in_int8(model: Any, ops: Elementwise) -> int:
    """Turn the frozen linear layers of a model into int8, but its head. Returns how many weights that were."""
    head = model.get_output_embeddings()
    weights = 0
    module: Any
    for module in model.modules():
        if type(module) is torch.nn.Linear and module is not head and not module.weight.requires_grad:
            weight, scale = ops.quantise(module.weight, None)
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
            module.register_buffer("scale", scale[:, 0], persistent=False)
            module.ops = ops
            module.__class__ = FrozenLinear
            weights += weight.numel()
    return weights
