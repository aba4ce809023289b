"""What a model makes of texts that it reads and does not answer: vectors, and log-probabilities of their tokens.

Letters: B texts of a pass, L tokens of its longest, D hidden size, P tokens of a prompt, V vocabulary.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.engine.model import base_of, num_virtual_tokens
from tunesmith.engine.values import groups
from tunesmith.errors import ModelError
from tunesmith.generate.adapters import of_model
from tunesmith.generate.alone import encodes
from tunesmith.generate.sampling import Token

if TYPE_CHECKING:
    from tunesmith.generate.engine import Generator

PASS_TOKENS = 4096  # of a pass, filled up: other answers wait for it
CHUNK_TOKENS = 256  # of a pass over a prompt, so that only their logits are held


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
def embed(
    model: Any, sequences: Sequence[Sequence[int]], pooling: str = "mean", adapter: str | None = None
) -> torch.Tensor:
    """A vector [D] for each sequence of tokens, float32 on the CPU: the mean over its tokens, or its last one's.

    `adapter` is the name of one of those that stand beside each other on the model.

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
    with answered_by(model, [adapter] * len(rows)):
        states = body(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()  # [B, L, D]
    if pooling == "last":
        found = states[torch.arange(len(rows), device=ids.device), lengths - 1]
    else:
        found = (states * mask[..., None]).sum(1) / lengths[:, None]
    return torch.nn.functional.normalize(found, dim=-1).cpu()


@torch.no_grad()
def prompt_scores(generator: "Generator", ids: Sequence[int], top: int, adapter: str | None = None) -> list[Token]:
    """Each token of a prompt with its log-probability after those before it; of the first there is none.

    Raises:
        ModelError: an encoder reads the prompt, and says nothing of its tokens.
    """
    model: Any = generator.model
    if encodes(model):
        raise ModelError(
            f"{type(base_of(model)).__name__} has an encoder for the prompt, and no log-probabilities of it"
        )
    cache, found = None, [Token(ids[0])]
    for start in range(0, len(ids), CHUNK_TOKENS):
        chunk = torch.tensor([list(ids[start : start + CHUNK_TOKENS])], device=model.device)
        told = model if cache is None else base_of(model)  # virtual tokens, once put before a prompt, are in the cache
        with answered_by(model, [adapter]):
            output = told(input_ids=chunk, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        after = list(ids[start + 1 : start + chunk.shape[1] + 1])
        logps = torch.log_softmax(output.logits[0, -chunk.shape[1] :][: len(after)].float(), dim=-1)  # [P, V]
        values, tokens = (part.tolist() for part in logps.topk(max(1, top)))
        own = logps[range(len(after)), after].tolist()
        for token, value, likely, likely_values in zip(after, own, tokens, values, strict=True):
            found.append(Token(token, value, tuple(zip(likely, likely_values, strict=True))[:top]))
    return found


def answered_by(model: Any, rows: Sequence[str | None]) -> contextlib.AbstractContextManager[None]:
    """A block in which the rows of a pass have these of the adapters that stand beside each other on a model."""
    adapters = of_model(model)
    return contextlib.nullcontext() if adapters is None else adapters.of(rows)
