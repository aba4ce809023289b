"""LongLoRA's shifted sparse attention (arXiv 2309.12307): long rows trained at the cost of short ones.

In training each sequence is cut into groups of G tokens, and half of the heads attend within them; the others attend
within groups that begin G/2 earlier, so that what one half cuts apart the other one joins. Evaluation and answers use
whole attention, with the same weights. Unlike the paper's own code, the first half group does not wrap around to the
last one: no token sees a later one.

It is packed attention over other bounds, so it runs on every kernel that packed attention has.

Letters: T tokens of the row, H query heads, K key and value heads, D head size, G tokens of a group.
"""

from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch

from tunesmith.engine.attention import NAME, Layout, packed_attention
from tunesmith.engine.model import base_of
from tunesmith.errors import RecipeError

KEPT = 4  # layouts: a step has one or two


def use(model: Any, packed: bool, group: int) -> str:
    """Give a model that runs packed attention the shifted one for training; what is to be said of it.

    Raises:
        RecipeError: it does not run packed attention.
    """
    from transformers import AttentionInterface

    base = base_of(model)
    if not packed:
        raise RecipeError(
            f"train.shifted_sparse_attention={group} is made of packed attention, which {type(base).__name__} does not "
            "run: leave it out"
        )
    name = f"{NAME}_shifted_{group}"
    AttentionInterface.register(name, _Shifted(group))
    base.set_attn_implementation(name)
    return f"attention: in training each half of the heads sees groups of {group:,} tokens, shifted by half of one"


class _Shifted:
    """An attention function for groups of some size."""

    def __init__(self, group: int) -> None:
        self.group = group

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,  # [1, H, T, D]
        key: torch.Tensor,  # [1, K, T, D]
        value: torch.Tensor,  # [1, K, T, D]
        attention_mask: torch.Tensor | None,
        packed: Layout | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention in groups where the layer is in training, and whole where it is not: [1, T, H, D]."""
        if packed is None or not module.training or self.group >= packed.longest:
            return packed_attention(module, query, key, value, attention_mask, packed=packed, **options)
        assert not packed.shares, "refused before the run"
        if key.shape[1] % 2:  # keys whose query heads lie in both halves
            key, value = (one.repeat_interleave(query.shape[1] // key.shape[1], 1) for one in (key, value))
        queries, keys, values = (one.split(-(-one.shape[1] // 2), dim=1) for one in (query, key, value))
        found = [
            packed_attention(module, q, k, v, attention_mask, packed=layout, **options)[0]
            for q, k, v, layout in zip(queries, keys, values, layouts(packed, self.group), strict=False)
        ]
        return torch.cat(found, dim=2), None


@lru_cache(KEPT)
def layouts(packed: Layout, group: int) -> tuple[Layout, Layout]:
    """Where groups lie, each as if it were a sequence: those of the first half of the heads, and the shifted ones."""
    return _cut(packed, group, group), _cut(packed, group, group // 2)


def _cut(packed: Layout, group: int, first: int) -> Layout:
    """Each sequence of a row in groups, of which the first has other tokens than the rest."""
    lengths: list[int] = []
    for length in packed.lengths:
        bounds = [0, *range(first, length, group), length]
        lengths += [after - before for before, after in pairwise(bounds)]
    bounds = [0, *accumulate(lengths)]
    offsets = torch.tensor(bounds, dtype=torch.int32, device=packed.offsets.device)
    alone = tuple((slice(one, other),) for one, other in pairwise(bounds))
    return Layout(offsets, tuple(lengths), max(lengths), alone, False, packed.ops)
