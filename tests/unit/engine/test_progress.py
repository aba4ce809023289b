import io
import math
import re

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from tunesmith.engine.progress import Progress, clock_time


class Run:
    """Calls a Progress as the trainer does, with a clock that a test sets; `seen` is everything it wrote."""

    def __init__(self, terminal: bool, max_steps: int = 20, start: int = 0, zero: bool = True, width: int = 90):
        self.seen = io.StringIO()
        self.now = 100.0
        console = Console(file=self.seen, force_terminal=terminal, width=width, color_system=None, legacy_windows=False)
        self.progress = Progress(console, clock=lambda: self.now)
        self.state = TrainerState(max_steps=max_steps, global_step=start, is_world_process_zero=zero)
        self.args, self.control = TrainingArguments(report_to=[]), TrainerControl()

    def event(self, name: str, **more) -> None:
        getattr(self.progress, name)(self.args, self.state, self.control, **more)

    def step(self, seconds: float = 2.0, **logs) -> None:
        self.now += seconds
        self.state.global_step += 1
        self.control.should_log = True
        self.event("on_step_end")
        step = self.state.global_step
        known = {"learning_rate": 2e-4, "grad_norm": 0.5, "tokens": 300 * step, "trained_tokens": 100 * step}
        known |= {"seconds": 2.0 * step, "memory_gb": 1.25, "epoch": step / 20}
        self.event("on_log", logs={"loss": 1.5, **known, **logs})

    @property
    def lines(self) -> list[str]:
        return self.seen.getvalue().splitlines()

    @property
    def screen(self) -> str:
        """The last frame as text: everything after the last time the cursor went up to draw again."""
        last = re.split(r"\x1b\[1A", self.seen.getvalue())[-1]
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last).strip()


def test_plain_lines_have_every_number():
    run = Run(terminal=False)
    run.event("on_train_begin")
    run.step(accuracy=0.51234)
    assert run.lines == [  # 300 tokens in 2 seconds; 19 steps of 2 seconds are left
        "step 1/20: loss 1.50 · lr 2.0e-04 · grad 0.500 · accuracy 0.512 · 150 tokens/s · 1.25 GB · 00:38 left"
    ]


def test_plain_lines_come_every_five_seconds_and_at_both_ends():
    run = Run(terminal=False)
    run.event("on_train_begin")
    for _ in range(20):
        run.step(seconds=2.0)
    run.event("on_train_end")
    said = [int(re.match(r"step (\d+)/20", line)[1]) for line in run.lines]
    assert said == [
        1,
        4,
        7,
        10,
        13,
        16,
        19,
        20,
    ]  # the third step after a line is the first that is 5 seconds later
    assert run.lines[-1].endswith("took 00:40")


def test_evaluations_are_always_said_after_the_step_they_follow():
    run = Run(terminal=False)
    run.event("on_log", logs={"eval_loss": 3.0})
    run.event("on_train_begin")
    for step in range(4):
        run.step(seconds=0.1)
        if step == 2:
            run.event("on_log", logs={"eval_loss": 1.25, "eval_runtime": 3.0})
    run.event("on_train_end")
    run.event("on_log", logs={"eval_loss": 1.0})
    run.event("on_log", logs={"train_runtime": 9.0, "train_loss": 1.4})  # transformers' own closing log
    assert [line.partition(" · ")[0] for line in run.lines] == [
        "step 0: held-out loss 3.00",
        "step 1/20: loss 1.50",
        "step 3/20: loss 1.50",
        "step 3: held-out loss 1.25 (at first 3.00)",
        "step 4/20: loss 1.50",
        "step 4: held-out loss 1.00 (at first 3.00)",
    ]


def test_a_loss_that_is_not_finite_is_shown_and_does_not_spoil_the_next():
    run = Run(terminal=False)
    run.event("on_train_begin")
    for loss in (2.0, math.nan, 2.0):
        run.step(seconds=9, loss=loss)
    assert [line.split()[3] for line in run.lines] == ["2.00", "nan", "2.00"]


def test_a_resumed_run_counts_its_own_time():
    run = Run(terminal=False, start=10)
    run.event("on_train_begin")
    run.step(seconds=3.0)  # 9 more steps of 3 seconds
    assert run.lines[0].startswith("step 11/20") and run.lines[0].endswith("00:27 left")


def test_other_ranks_say_nothing():
    run = Run(terminal=False, zero=False)
    run.event("on_train_begin")
    run.step()
    run.event("on_log", logs={"eval_loss": 3.0})
    run.event("on_train_end")
    assert run.seen.getvalue() == ""


def test_the_terminal_shows_bar_and_numbers_of_the_last_step():
    run = Run(terminal=True)
    run.event("on_train_begin")
    assert "0/20" in run.screen and "--:-- left" in run.screen
    for _ in range(5):
        run.step()
    bar, numbers = run.screen.splitlines()
    assert bar.startswith("5/20 ━") and bar.endswith("00:30 left")
    assert numbers == "loss 1.50 · lr 2.0e-04 · grad 0.500 · 150 tokens/s · 1.25 GB"
    run.event("on_log", logs={"eval_loss": 1.25})
    assert "step 5: held-out loss 1.25" in run.seen.getvalue()
    for _ in range(15):
        run.step()
    run.event("on_train_end")
    assert run.screen.splitlines()[0].startswith("20/20 ━") and "took 00:40" in run.screen


def test_the_bar_moves_on_steps_that_are_not_logged():
    run = Run(terminal=True)
    run.event("on_train_begin")
    run.now += 1
    run.state.global_step = 7
    run.event("on_step_end")
    assert run.screen.startswith("7/20")


def test_fast_steps_are_not_drawn_each():
    run = Run(terminal=True, max_steps=1000)
    run.event("on_train_begin")
    for _ in range(1000):
        run.step(seconds=0.01)  # ten seconds in all
    frames = run.seen.getvalue().count("\x1b[1A")
    assert 10 <= frames <= 60  # at most five frames a second
    assert run.screen.startswith("9")


def test_close_gives_the_terminal_back_after_an_exception():
    run = Run(terminal=True)
    run.event("on_train_begin")
    run.step()
    assert run.seen.getvalue().count("\x1b[?25l") == 1 and "\x1b[?25h" not in run.seen.getvalue()
    run.progress.close()
    run.progress.close()
    assert run.seen.getvalue().count("\x1b[?25h") == 1  # the cursor is shown again
    run.event("on_log", logs={"eval_loss": 3.0})
    assert run.lines[-1].endswith("step 1: held-out loss 3.00")


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (59.6, "01:00"), (192, "03:12"), (3723, "1:02:03")])
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text
