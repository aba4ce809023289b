"""Queries and keys turned by their positions in one pass over memory each way, where a model does it in a dozen.

A model's attention calls a function of its own module by name, `apply_rotary_pos_emb`. A layer whose function is seen
to compute what `elementwise.turn` does becomes of a class whose `forward` is the same code with ours under that name.

Letters: B batch, T tokens, H query heads, K key heads, D head size.
"""

from types import FunctionType
from typing import Any

import torch

from tunesmith.engine.elementwise import Elementwise, turn

NAME = "apply_rotary_pos_emb"


def turning(kind: type, ops: Elementwise) -> Any | None:
    """The `forward` of a class of layers with `ops.turn` in it, or None where its rotary positions are not those."""
    own = kind.__dict__.get("forward")
    if not isinstance(own, FunctionType) or NAME not in own.__code__.co_names:
        return None
    theirs = own.__globals__.get(NAME)
    if theirs is None or not _is_turn(theirs):
        return None

    def ours(
        query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if args or kwargs or cos.shape[-1] != query.shape[-1] or cos.requires_grad:
            return theirs(query, key, cos, sin, *args, **kwargs)
        return _Turn.apply(query, key, cos, sin, ops)

    made = FunctionType(own.__code__, {**own.__globals__, NAME: ours}, own.__name__, own.__defaults__, own.__closure__)
    made.__kwdefaults__ = own.__kwdefaults__
    return made


def _is_turn(function: Any) -> bool:
    """Whether a function of queries, keys, cos and sin gives what `turn` gives."""
    generator = torch.Generator().manual_seed(0)
    query, key, angle = (torch.randn(shape, generator=generator) for shape in ((1, 4, 3, 8), (1, 2, 3, 8), (1, 3, 4)))
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
    try:
        found = function(query, key, cos, sin)
    except (TypeError, ValueError, RuntimeError):  # of other arguments or shapes
        return False
    wanted = (turn(one.transpose(1, 2), cos, sin).transpose(1, 2) for one in (query, key))
    return len(found) == 2 and all(map(torch.allclose, found, wanted))


class _Turn(torch.autograd.Function):
    """Queries [B, H, T, D] and keys [B, K, T, D], turned. Nothing is kept but cos and sin."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, ops: Elementwise
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.ops = ops
        return _both(query, key, cos, sin, ops)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        by_query, by_key = gradients
        cos, sin = ctx.saved_tensors
        return (*_both(by_query, by_key, cos, -sin, ctx.ops), None, None, None)


def _both(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, ops: Elementwise
) -> tuple[torch.Tensor, torch.Tensor]:
    turned = ops.turn(query.transpose(1, 2), cos, sin), ops.turn(key.transpose(1, 2), cos, sin)
    return turned[0].transpose(1, 2), turned[1].transpose(1, 2)
