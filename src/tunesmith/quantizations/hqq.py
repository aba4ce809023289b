"""4 or 8 bit, a scale and a zero for each group of a row, by half-quadratic quantisation (HQQ), without a package."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunesmith.seams import Quantization

if TYPE_CHECKING:
    import torch


class HalfQuadratic(Quantization):
    """HQQ's weights, chosen for few large errors. They are widened to the dtype of the states, and multiplied in it."""

    nbits: Literal[4, 8] = 4
    """Bits of a weight."""
    group_size: Annotated[int, Field(ge=8)] = 64
    """Weights of a row that share a scale and a zero; it divides the width of every layer."""

    def bits_per_weight(self) -> tuple[float, float]:
        """Those of the number, and two float16 for a group."""
        return self.nbits + 32 / self.group_size, 0.0

    def config(self, dtype: "torch.dtype", device: str) -> Any:
        """What transformers takes."""
        from tunesmith.engine.packed_loading import PackedConfig

        return PackedConfig("hqq", {"nbits": self.nbits, "group_size": self.group_size})
