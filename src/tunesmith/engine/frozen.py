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

from tunesmith.engine import float8
from tunesmith.engine.compat import int8_product
from tunesmith.engine.elementwise import Elementwise, quantise
from tunesmith.engine.linear import FrozenLinear
from tunesmith.engine.model import head_modules
from tunesmith.errors import RecipeError

PART_SUMS = 1 << 22  # int32 sums that exist at once: 16 MB


@dataclass(frozen=True, eq=False)
class Int8:
    """A weight of int8 with a scale for each row."""

    weight: torch.Tensor  # [O, I] int8
    scale: torch.Tensor  # [O] float32
    bias: torch.Tensor | None  # [O]
    ops: Elementwise

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None, ops: Elementwise) -> "Int8":
        """A weight [O, I] rounded, row by row."""
        rounded, scale = quantise(weight, None)  # not compiled, which would be done for every shape of a parameter
        return cls(rounded, scale[:, 0].clone(), bias, ops)

    def dequantised(self) -> torch.Tensor:
        """The weight [O, I] that the products are with, float32."""
        return self.weight.float() * self.scale[:, None]

    def prepare(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
        """The input [T, I] as int8, the scale of each token [T, 1], and the dtype of results."""
        return *self.ops.quantise(x.data, None), x.dtype  # a view would be compiled for each shape of its base

    def forward(self, prepared: tuple[torch.Tensor, torch.Tensor, torch.dtype]) -> torch.Tensor:
        """X W' + b: [T, O]."""
        x, row, kind = prepared
        found = torch.empty(len(x), len(self.weight), dtype=kind, device=x.device)
        for part in _parts(len(x), len(self.weight)):
            sums = int8_product(x[part], self.weight.T)
            found[part] = self.ops.widen(sums, row[part].data, self.scale, self.bias, kind)
        return found

    def pull(self, gradient: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
        """Gradient W [T, I], added into a tensor where one is given."""
        given, row = self.ops.quantise(gradient.data, self.scale)
        found = gradient.new_empty(len(gradient), self.weight.shape[1]) if into is None else into
        for part in _parts(len(gradient), self.weight.shape[1]):
            wide = self.ops.widen(int8_product(given[part], self.weight), row[part].data, None, None, gradient.dtype)
            if into is None:
                found[part] = wide
            else:
                found[part] += wide
        return found


class HeldLinear(FrozenLinear):
    """A linear layer of codes. Its `weight` is made anew whenever it is asked for, as peft's DoRA and HiRA do."""

    product: Int8 | float8.Float8
    codes: torch.nn.Parameter  # [O, I] of 8 bits, the product's
    kind: torch.dtype

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The weight [O, I] that the products are with, in the dtype that it came in."""
        return self.product.dequantised().to(self.kind)


def _parts(length: int, width: int) -> Iterator[slice]:
    size = max(64, PART_SUMS // width)
    for start in range(0, length, size):
        yield slice(start, start + size)


@torch.no_grad()
def hold(model: Any, kind: str, ops: Elementwise) -> str:
    """Hold a model's frozen linear layers, but its head and adapters, in `int8` or `float8`; what is to be said of it.

    Raises:
        RecipeError: the model has none, or the device no such products.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    device = next(model.parameters()).device.type
    if kind == "int8" and device != "cpu":
        raise RecipeError(f"model.frozen_dtype: int8 is for a CPU as yet, and this is {device}: leave it out")
    left = head_modules(model)
    for layer in model.modules():
        beside = dict(layer.named_children()) if isinstance(layer, BaseTunerLayer) else {}
        beside.pop("base_layer", None)  # and what is left is an adapter's own, such as the beginning of PiSSA's
        left |= {one for module in beside.values() for one in module.modules()}
    weights = 0
    for module in model.modules():
        if type(module) is not torch.nn.Linear or module in left or module.weight.requires_grad:
            continue
        held: Any = module
        weights, held.kind = weights + held.weight.numel(), held.weight.dtype
        held.product = Int8.of(held.weight, held.bias, ops) if kind == "int8" else _float8(held)
        held.codes = torch.nn.Parameter(held.product.weight, requires_grad=False)
        del held.weight
        held.__class__ = HeldLinear
    if not weights:
        raise RecipeError(f"model.frozen_dtype: {kind} is for frozen weights, and no linear layer is: leave it out")
    return f"frozen weights: {weights:,} held in {kind}"


def _float8(module: torch.nn.Linear) -> float8.Float8:
    problem = float8.problem(module.weight)
    if problem is not None:
        raise RecipeError(f"model.frozen_dtype: float8 cannot be had ({problem}): leave it out")
    return float8.Float8.of(module.weight, module.bias)
