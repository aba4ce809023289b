"""8 bit, a scale for each row, with the columns of large inputs apart (arXiv 2208.07339), by bitsandbytes."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.seams import Quantization

if TYPE_CHECKING:
    import torch


class EightBit(Quantization):
    """bitsandbytes' LLM.int8(). Where quick int8 products on a CPU are wanted, see model.frozen_dtype."""

    llm_int8_threshold: Annotated[float, Field(ge=0)] = 6.0
    """On CUDA, the size from which the features of an input are multiplied apart, in half precision; 0 is none of them.
    A CPU widens the weights, and rounds no input."""

    def bits_per_weight(self) -> tuple[float, float]:
        """8, and a float32 for a row."""
        return 8.0, 32.0

    def config(self, dtype: "torch.dtype", device: str) -> Any:
        """What transformers takes. Raises MissingExtra."""
        from tunesmith.extras import need

        need("model.quantization=bnb_8bit", "bitsandbytes")
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.llm_int8_threshold)
