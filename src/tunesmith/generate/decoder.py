"""What goes on with answers: reads prompts, and says what may come next."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch


class Decoder(ABC):
    """A model with the caches of the answers that it is in the middle of. A place is one of these answers."""

    most: int  # answers that it can be in the middle of
    adapters: ClassVar[tuple[str, ...]] = ()  # names that `begin` takes

    @abstractmethod
    def begin(self, prompt: Sequence[int], adapter: str | None = None) -> "tuple[Any, torch.Tensor]":
        """A place for an answer to a prompt of ids, and the logits [V], float32, of its first token."""

    @abstractmethod
    def step(self, places: Sequence[Any], tokens: Sequence[int]) -> "torch.Tensor":
        """The logits [B, V], float32, after one more token of each answer."""

    @abstractmethod
    def free(self, place: Any) -> None:
        """Give up a place."""
