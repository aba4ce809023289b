"""What a model says of a prompt itself: the log-probability of each of its tokens.

Letters: P tokens of the prompt, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.engine.model import base_of
from tunesmith.errors import ModelError
from tunesmith.generate.alone import encodes
from tunesmith.generate.sampling import Token

if TYPE_CHECKING:
    from tunesmith.generate.engine import Generator

CHUNK_TOKENS = 256  # of a pass, so that only their logits are held


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
        output = told(input_ids=chunk, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        after = list(ids[start + 1 : start + chunk.shape[1] + 1])
        logps = torch.log_softmax(output.logits[0, -chunk.shape[1] :][: len(after)].float(), dim=-1)  # [P, V]
        values, tokens = (part.tolist() for part in logps.topk(max(1, top)))
        own = logps[range(len(after)), after].tolist()
        for token, value, likely, likely_values in zip(after, own, tokens, values, strict=True):
            found.append(Token(token, value, tuple(zip(likely, likely_values, strict=True))[:top]))
    return found
