"""What a person sees while a model trains: a live display on a terminal, a line now and then elsewhere."""

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from tunesmith.engine.metrics import Smooth, three_digits

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from transformers import TrainerControl, TrainerState, TrainingArguments

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_FRAMES = 0.2  # drawing one takes about a millisecond
SPAN_LOSS, SPAN_SPEED = 3, 10  # logged steps in the smoothed numbers
KNOWN = {"loss", "learning_rate", "grad_norm", "tokens", "trained_tokens", "seconds", "memory_gb", "epoch"}


class Progress(TrainerCallback):
    """Shows the logs of the trainer: training logs have `loss`, evaluation logs `eval_loss`.

    `tokens` and `seconds` in a training log count from the run's first step. Other logs are not shown. Call
    `close` where training can end by an exception: it gives the terminal back.
    """

    def __init__(self, console: "Console | None" = None, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True)
        self.clock = clock
        self.live: Live | None = None
        self.step = self.first_step = self.max_steps = 0
        self.begun = self.last_frame = 0.0
        self.last_line = -math.inf
        self.unsaid: str | None = None
        self.first_held_out: float | None = None
        self.counted = (0.0, 0.0)  # tokens, seconds at the last log
        self.loss, self.speed = Smooth(SPAN_LOSS), Smooth(SPAN_SPEED)
        self.parts: list[str] = []

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Start the display."""
        if not state.is_world_process_zero:
            return
        self.step = self.first_step = state.global_step
        self.max_steps = state.max_steps
        self.begun = self.clock()
        if self.console.is_terminal:
            from rich.live import Live

            self.live = Live(console=self.console, auto_refresh=False, get_renderable=self._frame)
            self.live.start(refresh=True)

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Move the bar; a step that is logged moves it with its numbers, just after this."""
        self.step = state.global_step
        if not control.should_log:
            self._draw()

    def on_log(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show what was logged."""
        if logs is None or not state.is_world_process_zero:
            return
        if "eval_loss" in logs:
            self._evaluated(state.global_step, logs)
        elif "loss" in logs:
            self._trained(state.global_step, logs)

    def on_train_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Show the last step and end the display."""
        self.step = state.global_step
        self.close()

    def close(self) -> None:
        """Leave the last numbers on the screen and give the terminal back; a second call does nothing."""
        if self.live is not None:
            self.live.stop()
            self.live = None
        elif self.unsaid is not None:
            self._say(self.unsaid)
            self.unsaid = None

    def _trained(self, step: int, logs: Mapping[str, Any]) -> None:
        self.step = step
        self.parts = self._numbers(logs)
        if self.live is not None:
            self._draw()
            return
        self.unsaid = f"step {self._place()}: {' · '.join([*self.parts, self._time_left()])}"
        if self.clock() - self.last_line >= SECONDS_BETWEEN_LINES:
            self._say(self.unsaid)
            self.unsaid, self.last_line = None, self.clock()

    def _numbers(self, logs: Mapping[str, Any]) -> list[str]:
        smooth = self.loss.add(logs["loss"])
        parts = [f"loss {three_digits(smooth if math.isfinite(logs['loss']) else logs['loss'])}"]
        if "learning_rate" in logs:
            parts.append(f"lr {logs['learning_rate']:.1e}")
        if "grad_norm" in logs:
            parts.append(f"grad {three_digits(logs['grad_norm'])}")
        parts += [f"{name} {_readable(value)}" for name, value in logs.items() if name not in KNOWN]
        if "tokens" in logs:
            tokens, seconds = logs["tokens"] - self.counted[0], logs["seconds"] - self.counted[1]
            self.counted = (logs["tokens"], logs["seconds"])
            parts.append(f"{three_digits(self.speed.add(tokens / seconds))} tokens/s")
        if "memory_gb" in logs:
            parts.append(f"{three_digits(logs['memory_gb'])} GB")
        return parts

    def _evaluated(self, step: int, logs: Mapping[str, Any]) -> None:
        if self.unsaid is not None:
            self._say(self.unsaid)
            self.unsaid = None
        loss = logs["eval_loss"]
        change = "" if self.first_held_out is None else f" (at first {three_digits(self.first_held_out)})"
        if self.first_held_out is None:
            self.first_held_out = loss
        self._say(f"step {step}: held-out loss {three_digits(loss)}{change}", "bold")

    def _draw(self) -> None:
        if self.live is not None and self.clock() - self.last_frame >= SECONDS_BETWEEN_FRAMES:
            self.last_frame = self.clock()
            self.live.refresh()

    def _say(self, line: str, style: str = "") -> None:
        from rich.text import Text

        self.console.print(Text(line, style), soft_wrap=not self.console.is_terminal)

    def _place(self) -> str:
        return f"{self.step:,}/{self.max_steps:,}"

    def _time_left(self) -> str:
        done, spent = self.step - self.first_step, self.clock() - self.begun
        if self.step == self.max_steps:
            return f"took {clock_time(spent)}"
        return f"{clock_time(spent / done * (self.max_steps - self.step))} left" if done else "--:-- left"

    def _frame(self) -> "RenderableType":
        """Two lines: how far, and the numbers."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None):
            bar.add_column(ratio=ratio, no_wrap=True)
        bar.add_row(
            Text(self._place(), style="bold"),
            ProgressBar(self.max_steps, self.step, complete_style="cyan", finished_style="green"),
            Text(self._time_left(), style="cyan"),
        )
        return Group(bar, Text(" · ".join(self.parts)))


def clock_time(seconds: float) -> str:
    """Seconds as mm:ss, or h:mm:ss from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute:02d}:{second:02d}"


def _readable(value: Any) -> str:
    return three_digits(value) if isinstance(value, float) else str(value)
