"""Which tokens end an answer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def ends_of(config: Any | None, *others: int | None) -> frozenset[int]:
    """The tokens that a generation config, where there is one, says that answers end with, and others."""
    said = None if config is None else config.eos_token_id
    return frozenset(end for end in (*(said if isinstance(said, list) else [said]), *others) if end is not None)


@dataclass(frozen=True)
class Written:
    """How a model, or an adapter of it, writes its answers: with this tokenizer, up to one of these tokens."""

    tokenizer: "PreTrainedTokenizerBase"
    stops: frozenset[int]
