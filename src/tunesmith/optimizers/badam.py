"""BAdam (arXiv 2404.02827): Adam on one block of the weights at a time."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunesmith.component import Component, name_of
from tunesmith.optimizers.adamw import AdamW
from tunesmith.seams import Adapter, Companion

if TYPE_CHECKING:
    import torch


class BAdam(AdamW):
    """The state, and in mode layer the gradients and their computation, are those of one block."""

    mode: Literal["layer", "ratio"] = "layer"
    """What a block is. layer: a layer of the model, or all that is before or after the layers; ratio: a part of every
    parameter."""
    switch_every: Annotated[int, Field(gt=0)] = 100
    """Steps until the next block's turn, which begins with an empty state."""
    switch_mode: Literal["ascending", "descending", "random"] = "descending"
    """Order of the blocks; random: every block once, in an order of its own each time."""
    update_ratio: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Part of every parameter that is a block in mode ratio."""

    def refuses(self, other: Component) -> str | None:
        """An adapter that reads the gradients of all weights, where those of one block alone are made."""
        if isinstance(other, Adapter) and other.reads_gradients and self.mode == "layer":
            return (
                f"adapter={name_of(other)} reads the gradients of all trained weights, and badam makes those of one "
                "block at a time: set optimizer.mode=ratio, or use adamw"
            )
        return super().refuses(other)

    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """Adam over the trainable parameters, of which one block has its turn."""
        from tunesmith.optimizers._badam import BlockAdamW
        from tunesmith.optimizers._groups import parameter_groups

        groups = parameter_groups(self, model, factors)
        return BlockAdamW(groups, lr=self.rate(), betas=self.betas, eps=self.epsilon, parts=self.parts())

    def parts(self) -> int:
        """How many parts every parameter has."""
        return round(1 / self.update_ratio) if self.mode == "ratio" else 1

    def companion(self, built: "torch.optim.Optimizer", model: Any, num_steps: int) -> Companion | None:
        """What gives the blocks their turns, in the same order on all ranks."""
        from tunesmith.optimizers._badam import BlockAdamW, Turns

        assert isinstance(built, BlockAdamW), "made by build"
        return Turns(built, model, self.switch_every, self.switch_mode)

    def state_bytes(self, named: "Iterable[tuple[str, torch.Tensor]]", head_dim: int = 1) -> int:
        """Two means of the largest block: of the parameters of a layer, or of one part of each."""
        from tunesmith.optimizers._badam import blocks_of, bounds

        blocks, parts = blocks_of(named), self.parts()
        if parts == 1:
            return max(sum(2 * parameter.nbytes for parameter in block) for block in blocks)
        every = [parameter for block in blocks for parameter in block]
        ends = ([(bounds(one.numel(), part, parts), one.itemsize) for one in every] for part in range(parts))
        return max(sum(2 * (end - start) * size for (start, end), size in one) for one in ends)
