"""Losses that compare samples see those of a whole optimizer step, however it is cut into micro-batches and ranks.

The step's log-probabilities are made once without gradients, the loss is taken of all of them together, and its
gradient with respect to each log-probability is what the micro-batches then weigh their own with (the method of
arXiv 2101.06983). So the gradient is that of the whole step in one batch. A step of one micro-batch on one rank needs
none of this.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from tunesmith.seams import Objective
from tunesmith.types import Batch, LossSum, Scores

READ = ("input_ids", "position_ids", "target", "weight", "reference")  # of a batch, [1, T] each
OF_SEQUENCES = ("label", "branch")  # [S]


@dataclass(frozen=True)
class Share:
    """What a micro-batch has of the loss of its step: the weight of each of its log-probabilities, [1, T].

    `value` and `metrics` are those of all where this is the first micro-batch of the first rank, else zeros.
    """

    weight: torch.Tensor
    value: torch.Tensor  # []
    metrics: dict[str, tuple[Any, Any]]

    def loss(self, scores: Scores) -> LossSum:
        """A sum with the gradient of the whole step's loss and with its value."""
        pulled = (self.weight * scores.logps).sum()
        return LossSum(pulled - pulled.detach() + self.value, self.metrics)


def shares(
    objective: Objective, batches: Sequence[Batch], logps: Sequence[torch.Tensor], accelerator: Any, each: int = 1
) -> list[Share]:
    """What each micro-batch of this rank has of the loss of all on all ranks: `logps` are those of each, [1, T].

    Every `each` ranks, one after the other, have the same micro-batches.
    """
    device = logps[0].device
    own = [(_on(batch, "cpu"), one.cpu()) for batch, one in zip(batches, logps, strict=True)]
    everyones, first = _gathered(own, accelerator, each)
    counted = [(batch, one) for batch, one in everyones if not batch.blank]
    whole = torch.cat([one for _, one in counted], dim=1).to(device).requires_grad_()
    together = _on(joined([batch for batch, _ in counted]), device)
    with torch.enable_grad():
        found = objective.loss(Scores(whole), together)
        (weight,) = torch.autograd.grad(found.total, whole)
    weights = iter(weight.split([one.shape[1] for _, one in counted], dim=1))
    parts = [torch.zeros_like(one, device=device) if batch.blank else next(weights) for batch, one in everyones]
    nothing = torch.zeros_like(found.total.detach())
    told = [number == 0 and accelerator.process_index == 0 for number in range(len(own))]
    return [
        Share(
            part,
            found.total.detach() if tells else nothing,
            dict(found.metrics) if tells else dict.fromkeys(found.metrics, (nothing, 0)),
        )
        for part, tells in zip(parts[first : first + len(own)], told, strict=True)
    ]


def _gathered(own: list[Any], accelerator: Any, each: int) -> tuple[list[Any], int]:
    """What all ranks have, in their order, once, and where this rank's own begins."""
    if accelerator.num_processes == 1:
        return own, 0
    from accelerate.utils import gather_object

    marked = gather_object([(accelerator.process_index, one) for one in own])
    firsts = [(rank, one) for rank, one in marked if rank % each == 0]
    ranks = [rank for rank, _ in firsts]
    return [one for _, one in firsts], ranks.index(accelerator.process_index // each * each)


def _on(batch: Batch, device: Any) -> Batch:
    values = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    moved: dict[str, Any] = {name: one.to(device) for name, one in values.items() if isinstance(one, torch.Tensor)}
    return replace(batch, **moved)


def joined(batches: Sequence[Batch]) -> Batch:
    """Micro-batches as one, with all that objectives read."""

    def along(name: str, axis: int) -> Any:
        values = [getattr(one, name) for one in batches]
        return None if values[0] is None else torch.cat(values, dim=axis)

    sequences = torch.tensor([0, *(len(one.label) for one in batches)]).cumsum(0).tolist()
    tokens = torch.tensor([0, *(one.input_ids.shape[1] for one in batches)]).cumsum(0).tolist()
    values: dict[str, Any] = {name: along(name, 1) for name in READ} | {name: along(name, 0) for name in OF_SEQUENCES}
    return Batch(
        **values,
        seq=torch.cat([one.seq + start for one, start in zip(batches, sequences[:-1], strict=True)], dim=1),
        offsets=torch.cat(
            [batches[0].offsets[:1], *(one.offsets[1:] + at for one, at in zip(batches, tokens[:-1], strict=True))]
        ),
        longest=max(one.longest for one in batches),
    )


@contextmanager
def same_chance(device: torch.device) -> Iterator[None]:
    """Leave random numbers as they were, so that dropout is the same again."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
