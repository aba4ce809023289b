"""Measure a recipe's training: some steps of an ordinary run, in a folder that is thrown away, with a stopwatch."""

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import record
from tunesmith.defaults import Device, Resolved, resolve, with_values
from tunesmith.engine.allocator import use_large_pages
from tunesmith.errors import RecipeError
from tunesmith.parts import Given, Job, fitted, load, make_trainer
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.engine.stopwatch import Step

TABLE, MEASURED = "table", "measured"


@dataclass(frozen=True)
class Peak:
    """What the device could do, and how that is known: from a table, or measured before and after the steps."""

    flops_per_second: float
    source: str
    measured: tuple[float, ...] = ()


def measure(recipe: Recipe, steps: int, warmup: int, say: Callable[[str], None]) -> dict[str, Any]:
    """What `steps` optimizer steps of a recipe take, after `warmup` steps that are not counted, as a JSON object.

    With `steps` 0 the whole run that the recipe says is made, and all but its first steps are counted.

    Raises:
        RecipeError, DataError, TemplateError, ModelError: as training does.
    """
    use_large_pages()
    from tunesmith.engine import peaks, ranks
    from tunesmith.engine.device import choose, peak_memory_bytes
    from tunesmith.engine.flops import Cost
    from tunesmith.engine.stopwatch import WatchedTrainer

    if ranks.number() > 1:
        raise RecipeError(f"bench measures one process, and this is one of {ranks.number()}: start one")
    device = choose(recipe.train.device)
    length = {"train.max_steps": warmup + steps} if steps else {}
    short = with_values(recipe, length | {"train.report_to": ()})
    resolved = resolve(short, device)
    job = Job(short, resolved, device, Given(), None, say)
    dtype = _compute_dtype(resolved.recipe)
    listed = peaks.listed(device, dtype)
    before = () if listed else (peaks.measured(device, dtype),)
    with ExitStack() as until_the_end:
        job, adapted = fitted(job, until_the_end)
        loaded = load(job, None, adapted, until_the_end)
        loaded = replace(loaded, rows=replace(loaded.rows, held_out=None))
        cost = Cost.of(loaded.model)
        folder = until_the_end.enter_context(tempfile.TemporaryDirectory(prefix="tunesmith-bench-"))
        trainer = make_trainer(job, Path(folder), loaded, (), WatchedTrainer)
        assert isinstance(trainer, WatchedTrainer)
        steps = trainer.args.max_steps - warmup
        if steps < 1:
            raise RecipeError(
                f"the run has {trainer.args.max_steps} steps, and {warmup} warm up: none would be counted"
            )
        say(f"measuring: {warmup} steps to warm up, then {steps}")
        trainer.train()
        memory = peak_memory_bytes(device.type)
        watched = trainer.stopwatch.steps()
        loaded.kernels.restore(trainer.accelerator.unwrap_model(loaded.model, keep_fp32_wrapper=False))
    measured = before if listed else (*before, peaks.measured(device, dtype))
    peak = Peak(listed or statistics.mean(measured), TABLE if listed else MEASURED, measured)
    norms = (line["grad_norm"] for line in trainer.state.log_history if line["step"] == 1 and "grad_norm" in line)
    found = _about(resolved, device, warmup) | {
        "compute_dtype": str(dtype).removeprefix("torch."),
        "first_loss": watched[0].loss,
        "first_grad_norm": next(norms, None),
        "run_tokens": sum(step.real_tokens for step in watched),
        "reference_seconds": loaded.reference_seconds,
        "peak_memory_bytes": memory,
        "peak": asdict(peak) | {"measured": list(peak.measured)},
    }
    return found | _summed(watched[warmup:], cost, peak)


def _compute_dtype(recipe: Recipe) -> Any:
    import torch

    if recipe.train.bf16 or recipe.train.fp16:
        return torch.bfloat16 if recipe.train.bf16 else torch.float16
    return getattr(torch, recipe.model.dtype)


def _about(resolved: Resolved, device: Device, warmup: int) -> dict[str, Any]:
    import torch

    return {
        "recipe": resolved.recipe.model_dump(mode="json"),
        "command": sys.argv,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": record.versions(),
        "device": {"type": device.type, "name": device.name, "threads": torch.get_num_threads()},
        "warmup": warmup,
    }


def _summed(steps: "Sequence[Step]", cost: Any, peak: Peak) -> dict[str, Any]:
    """The numbers of the counted steps: each, and together."""
    each = [_numbers([step], cost, peak) for step in steps]
    return _numbers(steps, cost, peak) | {"loss": steps[-1].loss, "steps": each}


def _numbers(steps: "Sequence[Step]", cost: Any, peak: Peak) -> dict[str, Any]:
    """The numbers of some steps: rates over all of their seconds."""
    parts = {part: sum(step.seconds[part] for step in steps) for part in steps[0].seconds}
    seconds = sum(parts.values())
    tokens, trained = sum(step.real_tokens for step in steps), sum(step.asked for step in steps)
    samples = sum(step.samples for step in steps)
    flops = sum(cost.of_step(step.sequences, step.asked) for step in steps)
    return {
        "seconds": seconds,
        "seconds_by_part": parts,
        "tokens": tokens,
        "trained_tokens": trained,
        "shared_tokens": sum(step.shared_tokens for step in steps),
        "samples": samples,
        "padded_tokens": sum(step.row_tokens for step in steps) - tokens,
        "tokens_per_second": tokens / seconds,
        "trained_tokens_per_second": trained / seconds,
        "samples_per_second": samples / seconds,
        "whole_tokens_per_second": sum(step.real_tokens + step.shared_tokens for step in steps) / seconds,
        "flops": flops,
        "flops_per_second": flops / seconds,
        "mfu": flops / seconds / peak.flops_per_second,
    }


def lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured, for people: a name and its text each."""
    count, total = len(found["steps"]), found["seconds"]
    whole = found["tokens"] + found["padded_tokens"]
    return [
        ("real tokens/s", f"{found['tokens_per_second']:,.1f}"),
        ("trained tokens/s", f"{found['trained_tokens_per_second']:,.1f}"),
        ("samples/s", f"{found['samples_per_second']:,.3f}"),
        *_shared(found),
        ("padded tokens", f"{found['padded_tokens']:,} of {whole:,}"),
        ("seconds a step", f"{total / count:,.3f}"),
        *((f"  {part}", f"{own / count:,.3f} ({own / total:.1%})") for part, own in found["seconds_by_part"].items()),
        ("peak memory", f"{found['peak_memory_bytes'] / 1e9:,.2f} GB"),
        ("arithmetic", f"{found['flops_per_second'] / 1e9:,.0f} GFLOP/s"),
        ("MFU", f"{found['mfu']:.1%} of {_source(found['peak'])} in {found['compute_dtype']}"),
        ("first loss", f"{found['first_loss']:.4f}"),
    ]


def _shared(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What beginnings that sequences have in common spare, and what the reference took beforehand, where they do."""
    shared, once = found["shared_tokens"], found["reference_seconds"]
    rows = [("shared tokens", f"{shared:,} more would be computed without sharing")] if shared else []
    return [*rows, ("reference, once", f"{once:,.1f} s before the first step")] if once else rows


def _source(peak: Mapping[str, Any]) -> str:
    said = f"{peak['flops_per_second'] / 1e9:,.0f} GFLOP/s"
    if peak["source"] == TABLE:
        return f"{said} (the table's)"
    before, after = (f"{flops / 1e9:,.0f}" for flops in peak["measured"])
    return f"{said} (measured: {before} before the steps, {after} after)"


def show(found: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print what was measured as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    versions = found["versions"]
    title = f"{found['recipe']['name']}: {len(found['steps'])} steps on {found['device']['name']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    for row in lines(found):
        table.add_row(*row)
    console = console or Console(highlight=False)
    console.print(table)
    said = ", ".join(f"{name} {versions[name]}" for name in ("tunesmith", "torch", "transformers", "peft"))
    console.print(f"{found['date']}, {said}", soft_wrap=True)
