"""APOLLO-Mini (arXiv 2412.05270): one scale for a whole matrix, from a subspace of one dimension."""

from typing import Annotated, ClassVar

from pydantic import Field

from tunesmith.optimizers.apollo import Apollo


class ApolloMini(Apollo):
    """As apollo, with next to no state of matrices of layers."""

    by_channel: ClassVar[bool] = False

    rank: Annotated[int, Field(gt=0)] = 1
    """Dimensions of the random subspace."""
    scale: Annotated[float, Field(gt=0)] = 128**0.5
    """What the scaled gradients are multiplied by: a single dimension says too little of their size."""
