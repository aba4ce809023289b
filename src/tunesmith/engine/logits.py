"""The asked words' logits and the mean of all words' logits, without the logits themselves.

A mean of logits is the logit of a mean of the head's rows, where no soft cap bends each; where one does, blocks of the
vocabulary are summed and made again in the backward pass.

Letters: N tokens, D features that enter, V vocabulary.
"""

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from tunesmith.engine.elementwise import shaped
from tunesmith.engine.head import Means, Pairs, parts_of


def own_and_mean(
    pairs: Pairs, bias: torch.Tensor | None, target: torch.Tensor, means: Means
) -> tuple[torch.Tensor, torch.Tensor]:
    """The shaped logit of each asked word, and the mean of all words' shaped logits: float32 [N] each.

    Gradients of trained weights are summed in float32, for which they are copied.
    """
    wide = [(x.float(), weight.float() if weight.requires_grad else weight) for x, weight in pairs]
    found: Any = sum((x * weight[target].float()).sum(-1) for x, weight in wide)
    own = shaped(found if bias is None else found + bias.float()[target], *means.shaping)[0]
    if means.shaping.cap is None:
        found = sum(x @ weight.mean(0, dtype=torch.float32) for x, weight in wide)
        return own, shaped(found if bias is None else found + bias.float().mean(), *means.shaping)[0]
    size = len(pairs[0][1])
    words = parts_of(size, max(16, means.logits // max(1, len(target))))
    sums: Any = sum(checkpoint(_sum_of_block, pairs, bias, means, part, use_reentrant=False) for part in words)
    return own, sums / size


def _sum_of_block(pairs: Pairs, bias: torch.Tensor | None, means: Means, words: slice) -> torch.Tensor:
    """The sum of a block of words' shaped logits [N]."""
    logits: Any = sum(x @ weight[words].T for x, weight in pairs)
    return shaped(logits if bias is None else logits + bias[words], *means.shaping)[0].sum(-1)
