"""AdamW with its state in 8 bit, a scale for each 256 values (arXiv 2110.02861), by bitsandbytes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tunesmith.errors import MissingExtra
from tunesmith.optimizers.adamw import AdamW

if TYPE_CHECKING:
    import torch


class AdamW8bit(AdamW):
    """bitsandbytes' AdamW: 2 bytes of state a value, not 8; of weights below 4,096 values the state is float32."""

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """AdamW over the trainable parameters. Raises MissingExtra."""
        try:
            from tunesmith.optimizers._bitsandbytes import PlainAdamW8bit
        except ImportError:
            command = "pip install 'tunesmith[bitsandbytes]'"
            raise MissingExtra(f"optimizer=adamw8bit needs bitsandbytes, which is not installed: {command}") from None
        from tunesmith.optimizers._groups import parameter_groups

        return PlainAdamW8bit(parameter_groups(self, model, factors), betas=self.betas, eps=self.epsilon)
