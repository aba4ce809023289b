"""int8 and float8 with a scale for each row, by torchao."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from tunesmith.seams import Quantization

if TYPE_CHECKING:
    import torch


class TorchAO(Quantization):
    """torchao's weights, widened in each product."""

    scheme: Literal["int8_weight_only", "float8_weight_only", "int4_weight_only"] = "int8_weight_only"
    """What a weight is held in. int4_weight_only has no gradient, and is refused."""

    @field_validator("scheme")
    @classmethod
    def _has_a_gradient(cls, scheme: str) -> str:
        if scheme == "int4_weight_only":
            raise ValueError("torchao's products with int4 have no gradient: use type=bnb_4bit")
        return scheme

    def bits_per_weight(self) -> tuple[float, float]:
        """8, and a scale for a row: a float32 at most."""
        return 8.0, 32.0

    def config(self, dtype: "torch.dtype", device: str) -> Any:
        """What transformers takes. Raises MissingExtra."""
        from tunesmith.extras import need

        need("model.quantization=torchao", "torchao")
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        kind = Int8WeightOnlyConfig if self.scheme == "int8_weight_only" else Float8WeightOnlyConfig
        return TorchAoConfig(kind())
