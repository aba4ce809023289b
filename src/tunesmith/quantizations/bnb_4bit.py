"""4 bit, a scale for each block of 64 weights (QLoRA, arXiv 2305.14314), by bitsandbytes."""

from typing import TYPE_CHECKING, Any, Literal

from tunesmith.seams import Quantization

if TYPE_CHECKING:
    import torch

BLOCK, NESTED_BLOCK = 64, 256  # weights with one scale; scales with one scale of their own


class FourBit(Quantization):
    """bitsandbytes' 4 bit weights. They are widened to the dtype of the states, and multiplied in it."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 numbers: nf4 has those that suit normally distributed weights, fp4 those of a 4 bit float."""
    use_double_quant: bool = True
    """Hold the scales in 8 bit too: 4.13 bits a weight, not 4.5."""
    quant_storage: Literal["uint8", "float16", "bfloat16", "float32"] = "uint8"
    """What the bytes of the weights are called, for programs that share out weights of one type: not this one."""

    def bits_per_weight(self) -> tuple[float, float]:
        """4, and a float32 for a block; with double quantisation 8 bits, and a float32 for every 256 of these."""
        scales = 8 / BLOCK + 32 / (BLOCK * NESTED_BLOCK) if self.use_double_quant else 32 / BLOCK
        return 4 + scales, 0.0

    def config(self, dtype: "torch.dtype", device: str) -> Any:
        """What transformers takes. Raises MissingExtra."""
        from tunesmith.extras import need

        need("model.quantization=bnb_4bit", "bitsandbytes")
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.use_double_quant,
            bnb_4bit_quant_storage=self.quant_storage,
            bnb_4bit_compute_dtype=dtype,
        )
