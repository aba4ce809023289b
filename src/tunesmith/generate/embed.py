"""Texts as vectors: what a model's body says of their tokens, as one vector of length 1.

Letters: B texts of a pass, L tokens of its longest, D hidden size.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tunesmith.engine.model import base_of, num_virtual_tokens
from tunesmith.engine.values import groups
from tunesmith.errors import ModelError
from tunesmith.generate.alone import encodes

PASS_TOKENS = 4096  # of a pass, filled up: other answers wait for it


def passes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of texts that go through the model together: of like length, and not too many."""
    for group in groups(lengths):
        longest = max(lengths[number] for number in group)
        size = max(1, PASS_TOKENS // longest)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def hidden_size(model: Any) -> int:
    """How many numbers a vector has."""
    return int(base_of(model).config.get_text_config().hidden_size)


@torch.no_grad()
def embed(model: Any, sequences: Sequence[Sequence[int]], pooling: str = "mean") -> torch.Tensor:
    """A vector [D] for each sequence of tokens, float32 on the CPU: the mean over its tokens, or its last one's.

    Raises:
        ModelError: it has virtual tokens before each text, which belong to no text.
    """
    if num_virtual_tokens(model):
        raise ModelError(f"a model with {num_virtual_tokens(model)} virtual tokens makes no embeddings of texts")
    base = base_of(model)
    body = base.get_encoder() if encodes(model) else getattr(base, base.base_model_prefix)
    lengths = torch.tensor([len(one) for one in sequences], device=base.device)
    rows = [torch.tensor(list(one), device=base.device) for one in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [B, L]
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    states = body(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()  # [B, L, D]
    if pooling == "last":
        found = states[torch.arange(len(rows), device=ids.device), lengths - 1]
    else:
        found = (states * mask[..., None]).sum(1) / lengths[:, None]
    return torch.nn.functional.normalize(found, dim=-1).cpu()
