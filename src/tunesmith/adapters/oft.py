"""Rotations of blocks of a frozen weight's inputs (arXiv 2306.07280, 2506.19847), by peft."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.adapters._peft import Continued


class OFT(Continued):
    """peft's OFT: what a layer is given is rotated, so that angles between its neurons stay as they are."""

    learning_rate: ClassVar[float] = 2e-4
    kind: ClassVar[str] = "OFTConfig"

    oft_block_size: Annotated[int, Field(gt=1)] = 32
    """Numbers of an input that are rotated together; it divides the width of every layer."""
    module_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the blocks that are not rotated in training."""
    coft: bool = False
    """Keep every rotation near to none."""
    eps: Annotated[float, Field(gt=0)] = 6e-5
    """How near, with coft."""
    block_share: bool = False
    """One rotation for all blocks of a layer."""

    def options(self, model: Any) -> dict[str, Any]:
        """The options of peft's OFTConfig."""
        names = ("oft_block_size", "module_dropout", "coft", "eps", "block_share")
        return {name: getattr(self, name) for name in names}
