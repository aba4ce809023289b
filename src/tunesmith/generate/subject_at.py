"""A model under examination behind an address: it is asked by tokens, so that prompts are those of this process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from tunesmith.errors import RecipeError
from tunesmith.generate.addressed import Addressed
from tunesmith.generate.asked import Sampling
from tunesmith.generate.endpoint import Server
from tunesmith.generate.engine import Reply
from tunesmith.generate.subject import Sequence_, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class AtAddress(Subject):
    """A model of a server, with its tokenizer here."""

    addressed: Addressed
    tokenizer: "PreTrainedTokenizerBase"

    @classmethod
    def at(cls, address: str, how: Server) -> "AtAddress":
        """The model at an address.

        Raises:
            RecipeError: there is no tokenizer for it.
            ModelError: see `Addressed.open`.
        """
        if how.tokenizer is None:
            raise RecipeError(
                f"{address} is a server's model, and evaluation asks it by tokens: say server.tokenizer=PATH, "
                "the run, folder or hub id that has the model's tokenizer"
            )
        addressed = Addressed.open(address, how)
        assert addressed.tokenizer is not None
        return cls(addressed, addressed.tokenizer)

    @property
    def context_tokens(self) -> int | None:
        """As `Subject` says it: None where the server does not tell."""
        return self.addressed.context_tokens

    @property
    def most_tokens(self) -> int | None:
        """As `Subject` says it."""
        return self.addressed.context_tokens

    def likeliest(self, tokens: Sequence[int], number: int) -> list[bool]:
        """As `Subject` says it."""
        return self.addressed.likeliest(tokens[:-number], tokens[-number:])

    def logps_by_row(self, sequences: Sequence[Sequence_]) -> Iterator[list[torch.Tensor]]:
        """As `Subject` says it. Raises ModelError where the server tells no log-probabilities of a prompt."""
        for row in self.addressed.scores(sequences):
            yield [torch.tensor(one, dtype=torch.float32) for one in row]

    def replies(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[str] = ()
    ) -> Iterator[Reply]:
        """As `Subject` says it, as far as the server takes prompts that are longer than its model's context."""
        sampling = Sampling(max_new_tokens=max_new_tokens, stop=tuple(stop))
        jobs = [partial(self.addressed.complete, tuple(prompt), sampling) for prompt in prompts]
        return self.addressed.in_order(jobs)
