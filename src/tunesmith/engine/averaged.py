"""The mean of the trained weights over the last steps, which is what a run is evaluated with and ends with.

An exponential moving average (Polyak and Juditsky 1992) in float32: each step it moves to the weights by 1 - decay,
where decay is min(decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage, so that the first
weights are soon forgotten.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tunesmith.seams import Companion


class Averaged(Companion):
    """The moving average of a model's trained weights."""

    def __init__(self, model: Any, decay: float) -> None:
        self.decay = decay
        self.weights = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self.means = {name: one.detach().to(torch.float32, copy=True) for name, one in self.weights.items()}

    @torch.no_grad()
    def stepped(self, step: int) -> None:
        """Move to the weights that a step left."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, mean in self.means.items():
            mean.lerp_(self.weights[name].float(), 1 - decay)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """A block in which the model has the mean as its weights."""
        own = {name: one.detach().clone() for name, one in self.weights.items()}
        self._put(self.means)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, one in self.weights.items():
            one.copy_(values[name])

    def state(self) -> dict[str, torch.Tensor]:
        """The mean, by the names of the weights."""
        return self.means

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up the mean of a checkpoint."""
        for name, mean in self.means.items():
            mean.copy_(state[name])
