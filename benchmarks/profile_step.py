"""Where the time of one training step goes: torch's profiler, by kind of work.

    python benchmarks/profile_step.py RECIPE [a.b=c ...]

The times are of operators themselves, without those that they call: of the device where there is one, else of the
CPU. An operator that is given the vocabulary's size is the head's. What no operator took (Python, waiting) is missing:
the seconds of the whole step stand in the title. The profiler itself costs time, so small operators look larger.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

import measure
import step_path

COLUMNS = ("work", "seconds", "share", "calls", "most of it")
WARMUP = 2
KINDS = {  # the first whose word is in an operator's name
    "attention": ("scaled_dot_product", "attention", "flash", "varlen"),
    "optimizer": ("_foreach_", "_fused_adam", "optimizer.", "addcdiv", "addcmul", "lerp"),
    "matmul": ("mm", "matmul", "linear", "bmm", "mkldnn", "gemm", "dot", "einsum"),
    "copies": ("copy", "clone", "contiguous", "cat", "index", "gather", "scatter", "pad", "fill", "zero", "to_"),
    "elementwise": (
        "mul", "add", "sub", "div", "exp", "log", "silu", "gelu", "neg", "pow", "rsqrt", "mean", "sum", "cos", "sin",
        "norm", "softmax", "where", "sigmoid", "tanh", "rms",
    ),
}  # fmt: skip


def main() -> None:
    """Train some steps, and print what the last one did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="recipe file or shipped recipe's name")
    parser.add_argument("words", nargs="*", default=[], metavar="a.b=c")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        profiler = Profiler()
        model = step_path.train(options.recipe, options.words, profiler, WARMUP + 2)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    rows = by_kind(profiler.torch.key_averages(group_by_input_shape=True), vocabulary)
    title = f"One step of {options.recipe}: {profiler.seconds:.3f} s"
    measure.report(title, COLUMNS, rows, options.json)


class Profiler(TrainerCallback):
    """torch's profiler around the step after the warm-up."""

    def __init__(self) -> None:
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        self.torch = profile(activities=activities, record_shapes=True)
        self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin when the warm-up is over, and stop a step later."""
        control.should_save = False
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == WARMUP:
            self.torch.start()
            self.seconds = -time.perf_counter()
        elif state.global_step == WARMUP + 1:
            self.seconds += time.perf_counter()
            self.torch.stop()


def by_kind(events: Iterable[Any], vocabulary: int) -> list[tuple[str, float, float, int, str]]:
    """The seconds of each kind of work, its share of all, its calls, and the three operators with most of it."""
    on_device = torch.cuda.is_available()
    found: dict[str, dict[str, list[float]]] = {}
    for event in events:
        seconds = (event.self_device_time_total if on_device else event.self_cpu_time_total) / 1e6
        operators = found.setdefault(kind_of(event.key, event.input_shapes, vocabulary), {})
        total = operators.setdefault(event.key, [0.0, 0])
        total[0] += seconds
        total[1] += event.count
    whole = sum(seconds for operators in found.values() for seconds, _ in operators.values())
    rows = []
    for kind, operators in found.items():
        seconds = sum(own for own, _ in operators.values())
        most = sorted(operators, key=lambda name: -operators[name][0])[:3]
        calls = int(sum(count for _, count in operators.values()))
        rows.append((kind, seconds, seconds / whole, calls, ", ".join(name.removeprefix("aten::") for name in most)))
    return sorted(rows, key=lambda row: -row[1])


def kind_of(name: str, shapes: Any, vocabulary: int) -> str:
    """What an operator does, by its name and what it is given."""
    if any(vocabulary in shape for shape in shapes or [] if isinstance(shape, list | tuple)):
        return "head"
    name = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


if __name__ == "__main__":
    main()
