"""NEFTune (arXiv 2310.05914): noise on the embeddings in training, by torch's own random numbers.

Each number of a sequence of L tokens with D features gets alpha / sqrt(L * D) times a uniform one of [-1, 1]. L is that
of each sequence: transformers' own hook takes the length of the row, in which many are packed here.

Letters: B rows, T tokens, D features.
"""

from collections.abc import Callable
from typing import Any

import torch

from tunesmith.engine.attention import Layout
from tunesmith.engine.model import base_of


def add(model: Any, alpha: float) -> Callable[[], None]:
    """Have noise on a model's input embeddings while it is in training mode; what ends it."""
    base = base_of(model)
    lengths: list[torch.Tensor] = []

    def before(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        lengths[:] = [_lengths(inputs)] if module.training else []

    def after(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training or not lengths:
            return output
        size = alpha / (lengths[0] * output.shape[-1]).sqrt()  # [B, T]
        return output + torch.empty_like(output).uniform_(-1, 1) * size[..., None].to(output.dtype)

    handles = [
        base.register_forward_pre_hook(before, with_kwargs=True),
        base.get_input_embeddings().register_forward_hook(after),
    ]

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end


def _lengths(inputs: dict[str, Any]) -> torch.Tensor:
    """The tokens of each token's sequence [B, T], what it shares with another included."""
    packed: Layout | None = inputs.get("packed")
    if packed is not None:  # whose positions may have gaps
        seen = [sum(part.stop - part.start for part in parts) for parts in packed.seen]
        found = torch.tensor(seen).repeat_interleave(torch.tensor(packed.lengths))[None]
        return found.to(packed.offsets.device)
    positions = inputs.get("position_ids")
    if positions is None:  # one sequence a row, filled up
        return inputs["attention_mask"].sum(-1, keepdim=True).expand_as(inputs["input_ids"])
    last = positions[:, 1:] != positions[:, :-1] + 1
    last = torch.nn.functional.pad(last, (0, 1), value=True)
    number = last.cumsum(-1) - last.long()  # of the sequence in its row
    ends = torch.zeros_like(positions).scatter_reduce(-1, number, positions, "amax")  # positions grow within a sequence
    return ends.gather(-1, number) + 1
