"""One case, measured in a process of its own: some steps of training, or single kernels."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from build import built
from shapes import DENSE_BF16, SHAPES, Case
from tunesmith.data.batch import PackedRow, join
from tunesmith.engine import cuda_attention, float8
from tunesmith.engine.attention import Layout
from tunesmith.engine.device import peak_memory_bytes
from tunesmith.objectives.sft import SFT
from tunesmith.types import Batch

PARTS = ("data", "forward", "backward", "optimizer")
ROUNDS = 20  # of a single kernel


class Clock:
    """When parts of a step began, on the device's own time where it has one, read at the end without a stop before."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """A part begins, and the one before ends."""
        event: Any = time.perf_counter()
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self.marks.append((part, event))

    def seconds(self) -> dict[str, float]:
        """What each part took, over all of them."""
        synchronise(self.cuda)
        found = dict.fromkeys(PARTS, 0.0)
        for (part, begun), (_, ended) in zip(self.marks, self.marks[1:], strict=False):
            found[part] += begun.elapsed_time(ended) / 1000 if self.cuda else ended - begun
        return found


def synchronise(cuda: bool) -> None:
    """Wait for the device."""
    if cuda:
        torch.cuda.synchronize()


def trained(case: Case, device: str, rows: Sequence[PackedRow], warmup: int) -> dict[str, Any]:
    """Train one step a row, and measure those after the first few."""
    cuda, vocabulary = device == "cuda", SHAPES[case.shape]["vocab_size"]
    made = built(case, device)
    parameters = [one for one in made.model.parameters() if one.requires_grad]
    objective, clock, losses = SFT(), Clock(device), []
    for number, row in enumerate(rows):
        if number == warmup:
            synchronise(cuda)
            clock, begun = Clock(device), time.perf_counter()
            if cuda:
                torch.cuda.reset_peak_memory_stats()
        clock.mark("data")
        batch = batch_of(row, device, vocabulary)
        clock.mark("forward")
        with torch.autocast(device, torch.bfloat16):
            loss = objective.loss(made.scorer(made.model, batch), batch).total / objective.count(batch)
        clock.mark("backward")
        loss.backward()
        clock.mark("optimizer")
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        made.optimizer.step()
        made.optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    clock.mark("end")
    synchronise(cuda)
    seconds = time.perf_counter() - begun
    parts = clock.seconds()
    counted = rows[warmup:]
    tokens = int(sum(row["lengths"].sum() for row in counted))
    real = sum(made.cost.real_flops(row["lengths"], int((row["weight"] != 0).sum())) for row in counted)
    return {
        "tokens_per_second": tokens / seconds,
        "mfu": made.cost.bar_flops(tokens) / seconds / DENSE_BF16,
        "mfu_of_what_is_computed": real / seconds / DENSE_BF16,
        "peak_memory_gb": peak_memory_bytes(device) / 1e9,
        "steps": len(counted),
        "seconds_per_step": seconds / len(counted),
        "share": {part: parts[part] / sum(parts.values()) for part in PARTS},
        "tokens_per_row": tokens / len(counted),
        "sequences_per_row": sum(len(row["lengths"]) for row in counted) / len(counted),
        "parameters": made.cost.parameters,
        "losses": [round(float(loss), 5) for loss in losses],
        "notes": made.notes,
    }


def batch_of(row: PackedRow, device: str, vocabulary: int) -> Batch:
    """A row on the device, its ids brought into the vocabulary of a model that they were not made for."""
    fields: dict[str, Any] = join([row])
    for name in ("input_ids", "target"):
        fields[name] = fields[name] % vocabulary
    if device == "cuda":
        moved = {name: one.pin_memory() for name, one in fields.items() if isinstance(one, torch.Tensor)}
        fields |= {name: one.to(device, non_blocking=True) for name, one in moved.items()}
    return Batch(**fields)


def kernels(case: Case, device: str, rows: Sequence[PackedRow], warmup: int) -> dict[str, Any]:
    """Single products and attentions of a shape, on a row: FLOP/s and milliseconds."""
    shape, row = SHAPES[case.shape], rows[0]
    tokens = int(row["lengths"].sum())
    found = {
        f"{outputs} x {inputs}": products(tokens, outputs, inputs, device, warmup)
        for outputs, inputs in (
            (shape["hidden_size"], shape["hidden_size"]),
            (shape["intermediate_size"], shape["hidden_size"]),
            (shape["hidden_size"], shape["intermediate_size"]),
        )
    }
    return {"tokens": tokens, "products": found, "attention": attentions(shape, row, device, warmup)}


def products(tokens: int, outputs: int, inputs: int, device: str, warmup: int) -> dict[str, float]:
    """TFLOP/s of a frozen layer's products in bfloat16 and in 8 bits, casts of 8 bits included and not."""
    x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
    gradient = torch.randn(tokens, outputs, device=device, dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16)
    held = float8.Float8.of(weight)
    ready = held.prepare(x)
    eight = (*float8.cast(gradient, held.scale), held.turned.t(), held.ones, torch.bfloat16)
    work: dict[str, Callable[[], object]] = {
        "bf16 forward": lambda: x @ weight.t(),
        "bf16 backward": lambda: gradient @ weight,
        "float8 forward": lambda: held.forward(held.prepare(x)),
        "float8 forward, x cast before": lambda: held.forward(ready),
        "float8 backward": lambda: held.pull(gradient),
        "float8 backward, cast before, exact sums": lambda: float8._product(*eight, fast=False),
        "float8 backward, cast before, fast sums": lambda: float8._product(*eight, fast=True),
    }
    flops = 2 * tokens * outputs * inputs
    return {name: flops / seconds_of(run, device, warmup) / 1e12 for name, run in work.items()}


def attentions(shape: dict[str, Any], row: PackedRow, device: str, warmup: int) -> dict[str, Any]:
    """Milliseconds of packed attention forward, and forward with backward, by each kernel that runs here."""
    heads, keys = shape["num_attention_heads"], shape["num_key_value_heads"]
    size, tokens = shape["hidden_size"] // heads, int(row["lengths"].sum())
    packed = Layout.of(batch_of(row, device, shape["vocab_size"]))
    q, k, v = (
        torch.randn(1, tokens, number, size, device=device, dtype=torch.bfloat16).transpose(1, 2)
        for number in (heads, keys, keys)
    )
    found: dict[str, Any] = {}
    for name in cuda_attention.KERNELS:
        with _said_if_it_fails(found, name):

            def forward(name: str = name) -> torch.Tensor:
                return cuda_attention.attend(name, q, k, v, None, None, None, packed)

            def both(run: Callable[[], torch.Tensor] = forward) -> None:
                torch.autograd.grad(run().sum(), (q, k, v))

            found[name] = {"forward": 1000 * seconds_of(forward, device, warmup)}
            for one in (q, k, v):
                one.requires_grad_()
            found[name]["forward and backward"] = 1000 * seconds_of(both, device, warmup)
        for one in (q, k, v):
            one.requires_grad_(False)
    return found


@contextlib.contextmanager
def _said_if_it_fails(found: dict[str, Any], name: str) -> Iterator[None]:
    """A kernel that is not installed or not for this device is a line, and the others are measured."""
    try:
        yield
    except (ImportError, RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        found[name] = found.get(name, {}) | {"failed": (str(error) or type(error).__name__).splitlines()[0][:200]}


def seconds_of(run: Callable[[], object], device: str, warmup: int) -> float:
    """Seconds of one call: the mean over some, after some that are not counted."""
    cuda = device == "cuda"
    for _ in range(warmup):
        run()
    synchronise(cuda)
    rounds = ROUNDS if cuda else 1
    begun = time.perf_counter()
    for _ in range(rounds):
        run()
    synchronise(cuda)
    return (time.perf_counter() - begun) / rounds
