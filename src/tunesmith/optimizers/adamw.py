"""AdamW (arXiv 1711.05101), with no decay on vectors (biases and norms)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.seams import Optimizer

if TYPE_CHECKING:
    import torch


class AdamW(Optimizer):
    """torch's fused AdamW."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate. None: the adapter's own (lora 2e-4, full and freeze 2e-5)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second mean."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decay of matrices in a step, times the learning rate."""

    def build(self, model: "torch.nn.Module") -> "torch.optim.Optimizer":
        """AdamW over the trainable parameters in two groups: matrices and vectors."""
        import torch

        from tunesmith.optimizers._groups import matrices_and_vectors

        assert self.learning_rate is not None, "resolved before the run"
        return torch.optim.AdamW(
            matrices_and_vectors(model, self.weight_decay),
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.epsilon,
            fused=True,
        )
