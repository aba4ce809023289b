"""A model under examination that vLLM answers with in this process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tunesmith.generate.asked import Sampling
from tunesmith.generate.by_vllm import ByVllm
from tunesmith.generate.engine import Reply
from tunesmith.generate.engines import Vllm
from tunesmith.generate.subject import Sequence_, Subject
from tunesmith.recipe import Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOGETHER = 64  # sequences that are a row here: so many are asked at once, and kept at once


@dataclass(frozen=True)
class InVllm(Subject):
    """A model of vLLM, with its tokenizer here."""

    model: ByVllm
    tokenizer: "PreTrainedTokenizerBase"

    @classmethod
    def started(cls, path: str, dtype: Dtype | None, how: Vllm) -> "InVllm":
        """The model of a path or hub id. Raises as `ByVllm.open`."""
        model = ByVllm.open(path, dtype, how)
        return cls(model, model.tokenizer)

    @property
    def notes(self) -> Sequence[str]:
        """As `Subject` says it."""
        return self.model.notes

    @property
    def context_tokens(self) -> int | None:
        """As `Subject` says it."""
        return self.model.context_tokens

    @property
    def most_tokens(self) -> int | None:
        """As `Subject` says it."""
        return self.model.context_tokens

    def likeliest(self, tokens: Sequence[int], number: int) -> list[bool]:
        """As `Subject` says it."""
        (found,) = self.model.scores([(tokens, number)])
        return [likeliest for _, likeliest in found]

    def logps_by_row(self, sequences: Sequence[Sequence_]) -> Iterator[list[torch.Tensor]]:
        """As `Subject` says it. Raises ModelError for a sequence that is longer than the context."""
        for at in range(0, len(sequences), TOGETHER):
            found = self.model.scores(sequences[at : at + TOGETHER])
            yield [torch.tensor([logp for logp, _ in one], dtype=torch.float32) for one in found]

    def replies(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[str] = ()
    ) -> Iterator[Reply]:
        """As `Subject` says it, within the context. Raises ModelError for a prompt that leaves no room in it."""
        sampling = Sampling(max_new_tokens=max_new_tokens, stop=tuple(stop))
        return self.model.answers(prompts, [sampling] * len(prompts))
