"""AdamW with its state in 8 bit, a scale for each 256 values (arXiv 2110.02861), by bitsandbytes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tunesmith import extras
from tunesmith.errors import RecipeError
from tunesmith.optimizers.adamw import AdamW

if TYPE_CHECKING:
    import torch

SMALL = 4096  # values below which the state is float32
BLOCK = 256


class AdamW8bit(AdamW):
    """bitsandbytes' AdamW: 2 bytes of state a value, not 8; of weights below 4,096 values the state is float32."""

    paged: bool = False
    """Whether the state may move to the host's memory when the GPU's is full; needs CUDA."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """AdamW over the trainable parameters.

        Raises:
            MissingExtra: bitsandbytes is not installed.
            RecipeError: the state is to be paged, and the weights are not on CUDA.
        """
        extras.need("optimizer=adamw8bit", "bitsandbytes")
        from tunesmith.optimizers._bitsandbytes import PlainAdamW8bit
        from tunesmith.optimizers._groups import parameter_groups

        device = next(model.parameters()).device.type
        if self.paged and device != "cuda":
            raise RecipeError(
                f"optimizer.paged moves state between a GPU and the host, and this is {device}: leave it out"
            )
        groups = parameter_groups(self, model, factors)
        return PlainAdamW8bit(groups, lr=self.rate(), betas=self.betas, eps=self.epsilon, is_paged=self.paged)

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """Two bytes a value and two scales a block, or two means in float32; the maps are shared, and not counted."""
        values = parameter.numel()
        return 8 * values if values < SMALL else 2 * values + 8 * -(-values // BLOCK)
