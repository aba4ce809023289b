"""What a run does between steps: stop on a signal, keep the best weights, stop early, answer questions."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunesmith.engine import ranks
from tunesmith.engine.metrics import MetricsFile

Answer = Callable[[Any, str], str]  # a model and a question to its answer


class StopOnSignal(TrainerCallback):
    """SIGTERM or Ctrl-C ends the step, saves and stops; a second one stops at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.received: int | None = None
        self.alone = ranks.number() == 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals in this block (in the main thread, where Python delivers them)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGTERM, signal.SIGINT)
        before = {kind: signal.signal(kind, self._receive) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number  # said at the end of the step: printing here could tear the live display

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint and the end of training, on all ranks in the same step."""
        if not self.alone:
            self.received = ranks.largest(self.received or 0) or None
        if self.received is not None:
            self.say(f"{signal.Signals(self.received).name}: saving (once more: stop at once)")
            control.should_save = control.should_training_stop = True


class LastLine(TrainerCallback):
    """Logs the last step even when `logging_steps` does not divide it."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a line of metrics."""
        control.should_log = control.should_log or state.global_step >= state.max_steps


def _since_best(state: TrainerState) -> int | None:
    """Evaluations since the one with the lowest eval_loss; None before the first of training."""
    losses = [line["eval_loss"] for line in state.log_history if "eval_loss" in line and line["step"] > 0]
    return len(losses) - 1 - losses.index(min(losses)) if losses else None


def spent(state: TrainerState, patience: int | None) -> bool:
    """Whether the last `patience` evaluations brought no lower eval_loss."""
    since = _since_best(state)
    return patience is not None and since is not None and since >= patience


class KeepBest(TrainerCallback):
    """Saves where eval_loss is lowest so far, and stops after `patience` evaluations without a lower one.

    It reads the history in the trainer's state, so that a resumed run decides as an uninterrupted one.
    """

    def __init__(self, patience: int | None, say: Callable[[str], None]) -> None:
        self.patience, self.say = patience, say

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint or the end."""
        if _since_best(state) == 0:
            control.should_save = True
        if spent(state, self.patience):
            control.should_training_stop = control.should_save = True
            self.say(
                f"stopped early at step {state.global_step}: {self.patience} evaluations without a lower held-out loss"
            )


class AnswerQuestions(TrainerCallback):
    """Answers the recipe's questions at every evaluation, into samples.jsonl."""

    def __init__(self, folder: Path, questions: Sequence[str], answer: Answer) -> None:
        self.file, self.questions, self.answer = MetricsFile(folder / "samples.jsonl"), questions, answer

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write one line a question: step, prompt, answer."""
        if not state.is_world_process_zero:
            return
        for question in self.questions:
            text = self.answer(kwargs["model"], question)
            self.file.append({"step": state.global_step, "prompt": question, "answer": text})
