"""Linear layers whose frozen weight is numbers of 4 or 8 bits, with a scale and a zero for a group of them.

weight = (number - zero) * scale, which is what GPTQ, AWQ, compressed-tensors and HQQ have in common: a file for each
(`quantizations/_gptq.py` ...) says how its tensors are read as numbers, and this one holds them. Those of 4 bits lie
two to a byte, the first half of a row in the lower bits and the second in the upper ones, so that both are taken out in
one pass each; the weight is made in float32 for every product.

Letters: O and I features out and in, G groups of a row, B bytes of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.engine.linear import FrozenLinear, Widened

PACKED = "tunesmith_packed"  # what transformers knows these layers by
WORD = 32  # bits of the words that numbers are stored in


@dataclass(frozen=True, eq=False)
class Numbers:
    """A weight as numbers, scales and zeros."""

    numbers: torch.Tensor  # [O, I] uint8 below 16, or of 8 bits: uint8, int8 or a float8
    scale: torch.Tensor  # [O, G], or [1, 1]
    zero: torch.Tensor | None = None  # [O, G], or [1, 1]; None: 0
    group: torch.Tensor | None = None  # [I], the group of each column; None: they follow each other

    def __post_init__(self) -> None:
        if self.group is None and self.numbers.shape[1] % self.scale.shape[1]:
            raise ValueError(f"{self.scale.shape[1]} groups do not divide a width of {self.numbers.shape[1]}")


def unpack(words: torch.Tensor, bits: int, number: int) -> torch.Tensor:
    """The first numbers [.., number] uint8 of rows of int32 words [.., W], which fill them from the lowest bit on."""
    if bits == 8:
        return words.contiguous().view(torch.uint8)[..., :number]
    if bits == 4:
        codes = words.contiguous().view(torch.uint8)
        return torch.stack((codes & 15, codes >> 4), -1).flatten(-2)[..., :number]
    first = torch.arange(number, device=words.device) * bits
    following = (first // WORD + 1).clamp(max=words.shape[-1] - 1)  # of which the last number takes nothing
    low = words[..., first // WORD].long() & 0xFFFFFFFF
    both = low | (words[..., following].long() << WORD)
    return (both >> (first % WORD) & ((1 << bits) - 1)).to(torch.uint8)


class PackedLinear(FrozenLinear):
    """A linear layer of `Numbers`. Its `weight` is made anew whenever it is asked for, and cannot be set."""

    codes: torch.nn.Parameter  # [O, B] of bytes: uint8, int8 or a float8
    scale: torch.Tensor
    zero: torch.Tensor | None
    group: torch.Tensor | None

    def __init__(self, found: Numbers, dtype: torch.dtype) -> None:
        torch.nn.Module.__init__(self)  # and not Linear's, which makes a weight
        self.out_features, self.in_features = found.numbers.shape
        self.halves, self.kind = _has_room(found), dtype
        codes = _packed(found.numbers) if self.halves else found.numbers.contiguous()
        self.codes = torch.nn.Parameter(codes, requires_grad=False)
        dense: Any = self.codes
        dense.stands_for = found.numbers.shape
        self.register_buffer("scale", found.scale.contiguous())
        self.register_buffer("zero", None if found.zero is None else _plain(found.zero))
        self.register_buffer("group", found.group)
        self.register_parameter("bias", None)
        self.product = Packed(self)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The weight [O, I] in the dtype of the model's other weights."""
        return self.dequantised(self.kind)

    @torch.no_grad()
    def dequantised(self, kind: torch.dtype) -> torch.Tensor:
        """The weight [O, I]."""
        whole = self.halves and self.zero is not None and not self.zero.is_floating_point()
        small = torch.int8 if whole else torch.float32  # what holds the differences of numbers and zeros
        numbers = _apart(self.codes, self.in_features, small) if self.halves else self.codes.to(small)
        scale, zero = self.scale.float(), None if self.zero is None else self.zero.to(small)
        if self.group is None:
            numbers, scale = numbers.view(self.out_features, scale.shape[1], -1), scale[..., None]
            zero = None if zero is None else zero[..., None]
        else:
            scale = scale[:, self.group]
            zero = None if zero is None else zero.expand(-1, self.scale.shape[1])[:, self.group]
        if zero is not None:
            numbers = numbers.sub_(zero)
        wide = numbers * scale if whole else numbers.mul_(scale)
        return wide.view(self.out_features, self.in_features).to(kind)

    def widened(self) -> torch.nn.Linear:
        """A plain layer of the same numbers."""
        found = torch.nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        found.weight = torch.nn.Parameter(self.weight, requires_grad=False)
        found.bias = self.bias
        return found

    def nbytes(self) -> int:
        """The bytes of the weight, its scales and its zeros."""
        return sum(one.nbytes for one in (self.codes, self.scale, self.zero, self.group) if one is not None)


class Packed(Widened):
    """The weight of a `PackedLinear`."""

    def dequantised(self, kind: torch.dtype) -> torch.Tensor:
        """The weight [O, I] that the products are with."""
        found: torch.Tensor = self.layer.dequantised(kind)
        return found


def _has_room(found: Numbers) -> bool:
    """Whether numbers fit into 4 bits, and their differences from whole zeros into an int8."""
    number = found.numbers.dtype == torch.uint8 and bool((found.numbers < 16).all())
    return number and (found.zero is None or bool((found.zero < 128).all()))


def _packed(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers below 16 [O, I], two to a byte: [O, B]."""
    first, second = torch.nn.functional.pad(numbers, (0, numbers.shape[1] % 2)).chunk(2, 1)
    return first | second << 4


def _apart(codes: torch.Tensor, number: int, kind: torch.dtype) -> torch.Tensor:
    """The numbers of bytes [O, B]: [O, I]."""
    rows, half = codes.shape
    found = torch.empty(rows, number, dtype=kind, device=codes.device)
    found[:, :half] = codes & 15
    found[:, half:] = codes[:, : number - half] >> 4
    return found


def _plain(zero: torch.Tensor) -> torch.Tensor:
    """Zeros as they are, or the one that all of them are [1, 1]."""
    first = zero[:1, :1]
    return (first if bool((zero == first).all()) else zero).clone()
