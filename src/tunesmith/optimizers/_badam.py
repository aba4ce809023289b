"""BAdam's update (arXiv 2404.02827, Algorithm 1), and whose turn it is."""

import random
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch

from tunesmith.optimizers._ruled import Ruled, adam_directions, decay
from tunesmith.seams import Companion

LAYER = re.compile(r"^.*?\.\d+\.")


class BlockAdamW(Ruled):
    """AdamW for the parameters whose turn it is (None: all), or for one part of each of several."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, parts: int, **options: Any) -> None:
        super().__init__(groups, lr, **options)
        self.parts, self.part = parts, 0
        self.active: set[torch.Tensor] | None = None

    def update(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update some parameters of a group by their gradients."""
        own = [one for one in zip(parameters, gradients, strict=True) if self.active is None or one[0] in self.active]
        if self.parts == 1:
            if own:
                self.adamw([one for one, _ in own], [gradient for _, gradient in own], group)
            return
        for parameter, gradient in own:
            place = slice(*bounds(parameter.numel(), self.part, self.parts))
            values, slope = parameter.view(-1)[place], gradient.reshape(-1)[place]
            if values.numel():
                self._part(parameter, values, slope, group)

    def _part(self, parameter: torch.Tensor, values: torch.Tensor, slope: torch.Tensor, group: dict[str, Any]) -> None:
        means = [self.tensor(name, parameter, values.shape) for name in ("exp_avg", "exp_avg_sq")]
        decay([values], group)
        direction = adam_directions([means[0]], [means[1]], [slope], self.counted([parameter]), group)[0]
        values.add_(direction, alpha=-group["lr"])


class Turns(Companion):
    """Gives blocks their turns. Gradients of layers that rest are not computed.

    Several processes add gradients of all trained weights, whoever's turn it is: those that rest are zeros there.
    """

    def __init__(self, optimizer: BlockAdamW, model: Any, switch_every: int, switch_mode: str) -> None:
        self.optimizer, self.switch_every, self.switch_mode = optimizer, switch_every, switch_mode
        self.blocks = blocks_of(model.named_parameters())
        self.step = 0
        self.alone = not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1)
        if not self.alone and optimizer.parts == 1:
            for parameter in [one for block in self.blocks for one in block]:
                parameter.register_hook(partial(self._resting, parameter))
        self._take_turn()

    def _resting(self, parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor | None:
        assert self.optimizer.active is not None, "in layers"
        return None if parameter in self.optimizer.active else torch.zeros_like(gradient)

    def _take_turn(self) -> None:
        turn, parts = self.step // self.switch_every, self.optimizer.parts
        if parts > 1:
            self.optimizer.part = whose(turn, parts, self.switch_mode)
            return
        number = whose(turn, len(self.blocks), self.switch_mode)
        self.optimizer.active = set(self.blocks[number])
        if self.alone:
            for block in self.blocks:
                for parameter in block:
                    parameter.requires_grad_(block is self.blocks[number])

    def stepped(self, step: int) -> None:
        """Pass the turn to the next block when its time has come; what was known of the last one's is forgotten."""
        self.step = step
        if step % self.switch_every == 0:
            self.optimizer.state.clear()
            self._take_turn()

    def state(self) -> dict[str, torch.Tensor]:
        """The number of the last step."""
        return {"step": torch.tensor(self.step)}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what `state` gave."""
        self.step = int(state["step"])
        self._take_turn()


def bounds(values: int, part: int, parts: int) -> tuple[int, int]:
    """Where a part of a parameter of so many values begins and ends."""
    return values * part // parts, values * (part + 1) // parts


def whose(turn: int, blocks: int, switch_mode: str) -> int:
    """The block that has a turn, all of them once in a round."""
    round_number, place = divmod(turn, blocks)
    if switch_mode == "random":
        return random.Random(round_number).sample(range(blocks), blocks)[place]
    return place if switch_mode == "ascending" else blocks - 1 - place


def blocks_of(named: Iterable[tuple[str, torch.Tensor]]) -> list[list[torch.Tensor]]:
    """The trained ones of a model's parameters by layer, in the order; what is before and after all is a block each."""
    blocks: dict[str, list[torch.Tensor]] = {}
    seen = False
    for name, parameter in named:
        layer = LAYER.match(name)
        seen = seen or layer is not None
        if parameter.requires_grad:
            blocks.setdefault(layer[0] if layer else "after" if seen else "before", []).append(parameter)
    return list(blocks.values())
