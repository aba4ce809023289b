"""Queries and keys turned by their positions in one pass over memory each way, where a model does it in a dozen.

A model's attention calls a function of its own module by name, `apply_rotary_pos_emb`. A layer whose function is seen
to compute what `elementwise.turn` does becomes of a class whose `forward` is the same code with ours under that name.

Letters: B batch, T tokens, H query heads, K key heads, D head size.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

from tunesmith.engine.compat import FAILURES
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

    def ours(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 4 or not _fits(*args):
            return theirs(*args, **kwargs)
        return _Turn.apply(*args, ops)

    made = FunctionType(own.__code__, {**own.__globals__, NAME: ours}, own.__name__, own.__defaults__, own.__closure__)
    made.__kwdefaults__ = own.__kwdefaults__
    return made


def _fits(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """Whether `turn` has anything to do with what a layer gives: one angle for every place of whole heads."""
    shapes = {one.shape[-2:] for one in (query, key, cos, sin)}
    return len(shapes) == 1 and cos.dim() == 3 and not (cos.requires_grad or sin.requires_grad)


def _is_turn(function: Any) -> bool:
    """Whether a function of queries, keys, cos and sin gives what `turn` gives."""
    generator = torch.Generator().manual_seed(0)
    query, key, cos, sin = (
        torch.randn(shape, generator=generator) for shape in ((1, 4, 3, 8), (1, 2, 3, 8), (1, 3, 8), (1, 3, 8))
    )
    wanted = [turn(one.transpose(1, 2), cos, sin).transpose(1, 2) for one in (query, key)]
    try:
        found = function(query, key, cos, sin)
        return len(found) == 2 and all(map(torch.allclose, found, wanted))
    except FAILURES:  # it takes or gives something else
        return False


class _Turn(torch.autograd.Function):
    """Queries [B, H, T, D] and keys [B, K, T, D], turned. Nothing is kept but cos and sin."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, ops: Elementwise
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.ops = ops
        return _each(ops.turn, query, key, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        by_query, by_key = gradients
        return (*_each(ctx.ops.turn_pull, by_query, by_key, *ctx.saved_tensors), None, None, None)


def _each(
    work: Callable[..., torch.Tensor], query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is done to both, in the order that they lie in: a token's heads beside each other."""
    made = [work(one.transpose(1, 2), cos, sin).transpose(1, 2) for one in (query, key)]
    return made[0], made[1]
