"""The ordinary trainer with a stopwatch: what each step takes, in parts, and what it was given.

A moment closes the part that ended with it, so the parts of a step add up to all of it. On CUDA a moment is an event in
the device's own queue: nothing waits for it, and the times are the device's. On other accelerators each moment waits
for the device.

Where a loss's weights are known beforehand the head's gradient is made with its log-probabilities: that is forward.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunesmith.engine.flops import Sequence
from tunesmith.engine.trainer import Trainer
from tunesmith.types import Batch

PARTS = ("logging", "data", "forward", "backward", "optimizer")  # in the order of a step; logs of the step before


@dataclass(frozen=True)
class Step:
    """One optimizer step: seconds of each part, and of what it was given."""

    seconds: dict[str, float]  # by part
    row_tokens: int  # places in its rows
    sequences: tuple[Sequence, ...]
    samples: int
    asked: int  # tokens that are learned
    loss: float  # the mean over the units of the step

    @property
    def real_tokens(self) -> int:
        """The tokens of its sequences."""
        return sum(one.tokens for one in self.sequences)

    @property
    def shared_tokens(self) -> int:
        """The tokens that stand once where several sequences begin with them, counted each time but the first."""
        return sum(one.shared for one in self.sequences)


class Stopwatch(TrainerCallback):
    """Keeps moments and batches while a trainer runs; reads them when it has ended.

    It also keeps a trainer from writing checkpoints and from evaluating, which are no part of a step.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.moments: list[tuple[str, Any]] = []  # the part that ended, and when
        self.batches: list[tuple[int, Batch, torch.Tensor]] = []  # the step, what it was given, its share of the loss

    def mark(self, part: str) -> None:
        """Say that a part of the step has just ended."""
        if self.kind == "cuda":
            moment: Any = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            if self.kind != "cpu":
                torch.accelerator.synchronize()
            moment = time.perf_counter()
        self.moments.append((part, moment))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the step, and ask for nothing between it and the next."""
        self.mark("optimizer")
        control.should_save = control.should_evaluate = False

    def steps(self) -> list[Step]:
        """What was measured. The first step begins where the first moment is: do not count it."""
        if self.kind == "cuda":
            torch.cuda.synchronize()
        found = []
        for number, seconds in enumerate(self._seconds()):
            own = [(batch, loss) for step, batch, loss in self.batches if step == number]
            found.append(
                Step(
                    seconds,
                    sum(batch.input_ids.numel() for batch, _ in own),
                    tuple(one for batch, _ in own for one in _sequences(batch)),
                    sum(_samples(batch) for batch, _ in own),
                    sum(int((batch.weight != 0).sum()) for batch, _ in own),
                    sum(float(loss) for _, loss in own),
                )
            )
        return found

    def _seconds(self) -> Iterator[dict[str, float]]:
        spent = dict.fromkeys(PARTS, 0.0)
        for (_, start), (part, end) in zip(self.moments[:-1], self.moments[1:], strict=True):
            spent[part] += start.elapsed_time(end) / 1000 if self.kind == "cuda" else end - start
            if part == "optimizer":
                yield spent
                spent = dict.fromkeys(PARTS, 0.0)


def _samples(batch: Batch) -> int:
    return len(batch.label) if batch.branch is None else int((batch.branch == 0).sum())


def _sequences(batch: Batch) -> Iterator[Sequence]:
    lengths = batch.offsets.diff().tolist()
    shared = [0] * len(lengths) if batch.prefix is None else batch.prefix[:, 1].tolist()
    for tokens, before in zip(lengths, shared, strict=True):
        yield Sequence(tokens, before)


class WatchedTrainer(Trainer):
    """The trainer, and where its steps' parts begin and end. The maths and the loop are its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stopwatch = Stopwatch(self.args.device.type)
        self.add_callback(self.stopwatch)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The batches of a step, which the device may have to wait for."""
        self.stopwatch.mark("logging")
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.stopwatch.mark("data")
        return found

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The forward pass; what came before it was moving the batch to the device."""
        self.stopwatch.mark("data")
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.stopwatch.mark("forward")
        self.stopwatch.batches.append((self.state.global_step, Batch(**inputs), loss.detach()))
        return loss

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """The forward and the backward pass of a batch."""
        loss = super().training_step(*args, **options)
        self.stopwatch.mark("backward")
        return loss
