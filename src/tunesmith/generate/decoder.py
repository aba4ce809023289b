"""What goes on with answers: reads prompts, and says what may come next."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Decoder(ABC):
    """A model with the caches of the answers that it is in the middle of. A place is one of these answers."""

    most: int  # answers that it can be in the middle of
    most_tokens: int | None = None  # of a prompt and its answer, where the room for them is bounded
    adapters: tuple[str, ...] = ()  # names that `begin` takes
    note: str | None = None  # what a person should know of it

    @abstractmethod
    def begin(self, prompt: Sequence[int], adapter: str | None = None) -> Any | None:
        """A place for an answer to a prompt of ids, of which nothing is read yet; None while there is no room."""

    @abstractmethod
    def read(self, places: Sequence[Any]) -> "tuple[list[Any], torch.Tensor | None]":
        """Read on in the prompts of places, as far as one pass goes, so that long ones do not hold up the others.

        Those of them that are read to the end, and the logits [N, V], float32, of their first tokens.
        """

    def has_room(self, places: Sequence[Any]) -> bool:
        """Whether there is room for one more token of each."""
        return True

    @abstractmethod
    def step(self, places: Sequence[Any], tokens: Sequence[int]) -> "torch.Tensor":
        """The logits [B, V], float32, after one more token of each answer."""

    @abstractmethod
    def free(self, place: Any) -> None:
        """Give up a place."""
