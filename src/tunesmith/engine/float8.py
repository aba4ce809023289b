"""Frozen weights in 8-bit floating point: the products of a step at twice the rate of bfloat16 (Hopper, Ada and later).

A weight is quantised once: float8_e4m3fn with one scale for each of its rows, that is for each output. What a step
casts is only what is new in it: activations going forward and gradients going back, one scale for each token, in one
pass over memory each.

**Forward**: x @ weight.T = (x8 @ w8.T) * scale of token * scale of output, in one kernel.

**Backward**: gradient @ weight contracts over the outputs, so that the scale of an output cannot be taken out of the
sum. It is multiplied into the gradient before that is cast, which costs nothing in the same pass over it and loses
nothing: a floating-point cast rounds each number relative to itself. So the backward pass uses the very 8-bit numbers
of the forward pass, and its gradient is that of the function which was computed, but for the casts of activations. (A
second quantisation along the other side would give the backward pass a weight that differs from the forward's.)

**Memory**: the tensor cores of Hopper read both operands of an 8-bit product along the contraction only, hence the
second operand column by column. Forward that is the weight as it lies; backward it is its transpose, a second copy of
the same numbers. So 2 bytes a weight, as in bfloat16: this buys speed and no memory. Transposing anew in each backward
pass would be 1 byte a weight for 2 bytes of traffic each: about 5 ms of an 8B model's step at an H100's 3.35 TB/s,
where the wanted 20,000 tokens/s leave 205 ms to 4,096 tokens. Worth an option when somebody needs the memory.

**Gradients are e4m3 as well**, not e5m2: with a scale for each token only the range within one row counts, for which
448 down to 2^-9 is enough, and a third bit of mantissa halves the rounding. Sums are the tensor cores' fast ones
forward, and the exact ones backward.

Only products are done here; adapters and autograd are the layer's. On a CPU torch computes the same
arithmetic (8-bit operands, float32 sums), slowly: for tests.

Letters: T tokens, I inputs, O outputs.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.functional import ScalingType, scaled_mm

EIGHT = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LEAST = 1e-12  # of a row's largest number, so that rows of zeros have a scale
MULTIPLE = 16  # inputs and outputs must be one: the kernel reads 16 bytes at once


def cast(x: torch.Tensor, weight: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of x [T, I] (times a weight [I]) in 8 bits, and the scale of each [T, 1]: x = 8 bits * scale."""
    wide = x.float() if weight is None else x.float() * weight
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(LEAST) / LARGEST
    eight = (wide / scale).clamp(-LARGEST, LARGEST).to(EIGHT, memory_format=torch.contiguous_format)
    return eight, scale.contiguous()


@cache
def _fused() -> Any:
    """`cast` in one kernel; one compilation serves every number of tokens and features."""
    return torch.compile(cast, dynamic=True)


def _cast(x: torch.Tensor, weight: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    return (_fused() if x.is_cuda else cast)(x, weight)


def problem(weight: torch.Tensor) -> str | None:
    """Why a weight [O, I] cannot be held in 8 bits on its device, or None."""
    outputs, inputs = weight.shape
    if outputs % MULTIPLE or inputs % MULTIPLE:
        return f"a weight of {outputs} x {inputs} is not divisible by {MULTIPLE}"
    if weight.is_cuda:
        generation = torch.cuda.get_device_capability(weight.device)
        if generation < (8, 9):
            return f"{torch.cuda.get_device_name(weight.device)} has no 8-bit floating-point products"
    return None


Prepared = tuple[torch.Tensor, torch.Tensor, torch.dtype]


@dataclass(frozen=True, eq=False)
class Float8:
    """A frozen weight [O, I] and the two products of a step with it."""

    weight: torch.Tensor  # [O, I] in 8 bits
    turned: torch.Tensor  # [I, O], the same numbers transposed
    scale: torch.Tensor  # [O] float32
    bias: torch.Tensor | None  # [O]
    ones: torch.Tensor  # [1, I] float32: the backward product's scale of columns

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None = None) -> "Float8":
        """A weight [O, I] quantised by rows, and its bias as it is."""
        assert problem(weight) is None, problem(weight)
        eight, scale = _cast(weight.detach())
        ones = torch.ones(1, weight.shape[1], device=weight.device)
        return cls(eight, eight.t().contiguous(), scale[:, 0], bias, ones)

    def prepare(self, x: torch.Tensor) -> Prepared:
        """The input [T, I] in 8 bits, the scale of each token, and the dtype of results: for all that share it."""
        return *_cast(x), x.dtype

    def forward(self, prepared: Prepared) -> torch.Tensor:
        """The product x @ weight.T + bias: [T, O]."""
        eight, scale, dtype = prepared
        found = _product(eight, scale, self.weight.t(), self.scale[None], dtype, fast=True)
        return found if self.bias is None else found.add_(self.bias)

    def pull(self, gradient: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """The product gradient [T, O] @ weight: [T, I], added into a tensor where one is given."""
        eight, scale = _cast(gradient, self.scale)
        found = _product(eight, scale, self.turned.t(), self.ones, gradient.dtype, fast=False)
        return found if into is None else into.add_(found)

    def dequantised(self) -> torch.Tensor:
        """The weight [O, I] that the products are with, float32: what an adapter is merged into."""
        return self.weight.float() * self.scale[:, None]


def _product(
    left: torch.Tensor,  # [T, C] row by row
    left_scale: torch.Tensor,  # [T, 1]
    right: torch.Tensor,  # [C, N] column by column
    right_scale: torch.Tensor,  # [1, N]
    dtype: torch.dtype,
    fast: bool,
) -> torch.Tensor:
    """(left * left_scale) @ (right * right_scale): [T, N]."""
    found = scaled_mm(
        left,
        right,
        left_scale,
        ScalingType.RowWise,
        right_scale,
        ScalingType.RowWise,
        output_dtype=torch.bfloat16 if left.is_cuda else dtype,  # older kernels of CUDA write nothing else
        use_fast_accum=fast,
    )
    return found.to(dtype)
