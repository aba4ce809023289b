"""A few steps of a recipe in every way that must give the same: how rows are cut, and how many processes share them.

Each way trains the same few samples for some steps, all of them in each step, without dropout and in float32; what
differs then is a setting that changes the maths. The first way, one row that holds all samples, is what others are
compared with.
"""

import contextlib
import importlib.util
import io
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.component import name_of, spell
from tunesmith.errors import FOLDER_OF_ERRORS, REFUSALS, RecipeError, RunError, TunesmithError, first_left
from tunesmith.recipe import Recipe

STEPS = 3
PROCESSES = 2
SAMPLES = 8  # whose rows two processes share
CLOSE = {"loss": 1e-5, "grad_norm": 1e-4, "weights": 1e-2}
"""The largest differences: of losses and norms as parts of them; of weights, in steps of the peak learning rate."""

KEPT = (
    "max_grad_norm",
    "seed",
    "lr_scheduler_type",
    "min_lr_ratio",
    "router_aux_loss_coef",
    "shifted_sparse_attention",
)
"""Options of `train` that are part of the maths of a step."""
EPSILON = 1e-5  # of an optimizer, at least: with less, a step of a gradient that is rounding alone is a whole step

CUT = ("data.window_samples=1",)  # a sample a row
WAYS: dict[str, tuple[int, tuple[str, ...]]] = {  # processes and words; {all} samples, {each} for each process
    "one row of all samples": (1, ()),
    "a row for each, in one batch": (1, (*CUT, "train.per_device_train_batch_size={all}")),
    "a row for each, accumulated": (1, (*CUT, "train.gradient_accumulation_steps={all}")),
    "activations computed again": (1, ("train.activation_checkpointing=true",)),
    "two processes (ddp)": (2, (*CUT, "train.gradient_accumulation_steps={each}", "parallel.strategy=ddp")),
    "two processes (fsdp)": (2, (*CUT, "train.gradient_accumulation_steps={each}", "parallel.strategy=fsdp")),
    "two processes (context)": (2, ("parallel.context=2",)),
    "two processes (tensor)": (2, ("parallel.tensor=2",)),
}


if importlib.util.find_spec("deepspeed") is not None:
    WAYS |= {
        f"two processes (ZeRO-{stage})": (
            2,
            (
                *CUT,
                "train.gradient_accumulation_steps={each}",
                "parallel.strategy=deepspeed",
                f"parallel.zero_stage={stage}",
            ),
        )
        for stage in (1, 2, 3)
    }


@dataclass(frozen=True)
class Found:
    """How far a way is from the first one, why it is not to be had, or how it failed."""

    way: str
    differences: dict[str, float] | None
    refused: str | None = None
    failed: str | None = None

    @property
    def same(self) -> bool:
        """Whether it gives the same as the first one, or is not to be had."""
        if self.differences is None:
            return self.failed is None
        return all(value <= CLOSE[name] for name, value in self.differences.items())


def verify(path: str, words: Sequence[str], say: Callable[[str], None]) -> list[Found]:
    """Train a recipe, with words, in every way.

    Raises:
        RecipeError: its rows cannot be had one by one.
        RunError: the first way fails.
    """
    recipe = Recipe.load(path, words)
    if recipe.data.streaming or type(recipe.objective).documents or type(recipe.objective).encodes:
        why = "data.streaming" if recipe.data.streaming else f"objective={name_of(recipe.objective)}"
        raise RecipeError(
            f"verify compares rows of one sample with rows of many, and with {why} a row is something else"
        )
    with tempfile.TemporaryDirectory(prefix="tunesmith-verify-") as place:
        folder = Path(place)
        rows, samples, first = _first(recipe, folder, say)
        found = [Found(next(iter(WAYS)), dict.fromkeys(CLOSE, 0.0))]
        for number, (way, (processes, own)) in enumerate(list(WAYS.items())[1:], 1):
            say(f"{way} ...")
            counts = {"all": samples, "each": samples // PROCESSES}
            try:
                run = _run(recipe, folder / f"{number}", rows, processes, [word.format(**counts) for word in own])
                found.append(Found(way, _differences(first, run)))
            except REFUSALS as error:
                found.append(Found(way, None, refused=str(error)))
            except TunesmithError as error:
                found.append(Found(way, None, failed=str(error)))
        return found


def _first(recipe: Recipe, folder: Path, say: Callable[[str], None]) -> tuple[int, int, Path]:
    """How many rows make samples that processes can share, how many samples, and the first way's run of them."""
    for number in range(SAMPLES, 1, -1):
        run = _run(recipe, folder / f"first-{number}", number, 1, [])
        found = json.loads((run / "ledger.json").read_text(encoding="utf-8"))["train"]["samples_trained"]
        if found and found % PROCESSES == 0:
            say(f"{found} samples, {STEPS} steps with all of them in each, float32, no dropout")
            return number, found, run
    raise RecipeError(
        f"{recipe.name}: no number of its first {SAMPLES} rows makes samples that two processes can share"
    )


def _run(recipe: Recipe, out: Path, rows: int, processes: int, words: Sequence[str]) -> Path:
    """A run of a recipe made small, in this process or in several. Raises what training does."""
    import yaml

    from tunesmith.run import train

    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(_small(recipe, rows, out), allow_unicode=True), encoding="utf-8")
    if processes == 1:
        with contextlib.redirect_stderr(io.StringIO()):
            return train(Recipe.load(str(file), words)).folder
    Recipe.load(str(file), words)  # what it refuses needs no process
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*start, "-m", "tunesmith", "train", str(file), *words]
    errors = out.with_suffix(".errors")
    errors.mkdir()
    hidden = {"CUDA_VISIBLE_DEVICES": "", FOLDER_OF_ERRORS: str(errors)}  # DeepSpeed takes a GPU where it sees one
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | hidden)
    if done.returncode:
        said = first_left(errors) or {"message": f"{shlex.join(command)} ended with {done.returncode}"}
        raise (RecipeError if said.get("refused") else RunError)(said["message"])
    return out


def _small(recipe: Recipe, rows: int, out: Path) -> dict[str, Any]:
    """What a recipe says, with a few rows and steps and nothing that draws numbers."""
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    sources = [one.model_dump(mode="json", exclude_unset=True) for one in recipe.data.train]
    share = max(1, rows // len(sources))
    kept = [one | {"num_samples": share, "weight": 1.0} for one in sources[:rows]]
    data = {name: value for name, value in tree["data"].items() if name not in ("eval", "mix", "leakage")}
    data |= {"train": kept, "cache_dir": str(out.parent / "cache")}
    train = {name: value for name, value in tree.get("train", {}).items() if name in KEPT}
    train |= {
        "output_dir": str(out),
        "num_train_epochs": STEPS,
        "warmup_steps": 0,
        "row_tokens": 4 * rows * recipe.data.max_tokens,
        "save_steps": 10 * STEPS,
        "bf16": False,
        "compile": False,
        "device": "cpu",
    }
    model = tree["model"] | {"dtype": "float32", "dropout": 0.0}
    adapter = spell(recipe.adapter, only_set=True)
    if "lora_dropout" in type(recipe.adapter).model_fields:
        adapter["lora_dropout"] = 0.0
    optimizer = spell(recipe.optimizer, only_set=True)
    if "epsilon" in type(recipe.optimizer).model_fields:
        optimizer["epsilon"] = max(EPSILON, spell(recipe.optimizer)["epsilon"] or 0.0)
    rest = {name: value for name, value in tree.items() if name not in ("eval", "parallel")}
    return rest | {"model": model, "data": data, "train": train, "adapter": adapter, "optimizer": optimizer}


def _differences(first: Path, other: Path) -> dict[str, float]:
    """The largest differences of two runs, by the names of `CLOSE`."""
    from safetensors.torch import load_file

    lines, others = ([line for line in _lines(run) if "loss" in line] for run in (first, other))
    found = {
        name: [abs(a[name] - b[name]) / max(abs(a[name]), 1e-12) for a, b in zip(lines, others, strict=True)]
        for name in ("loss", "grad_norm")
    }
    rate = max(line["learning_rate"] for line in lines)
    found["weights"] = []
    for file in sorted((first / "final").glob("*.safetensors")):
        mine, theirs = load_file(file), load_file(other / "final" / file.name)
        if mine.keys() != theirs.keys():
            raise RunError(f"{other} has other weights than {first}: {sorted(mine.keys() ^ theirs.keys())[0]}")
        found["weights"] += [float((mine[name] - theirs[name]).abs().max()) / rate for name in mine]
    for name, values in found.items():
        if not all(map(math.isfinite, values)):  # which `max` passes over
            raise RunError(f"{name} of {other} or of {first} is not finite: the differences are {values[:9]}")
    return {name: max(values, default=0.0) for name, values in found.items()}


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def lines(found: Sequence[Found]) -> Iterator[str]:
    """The table, as a person reads it."""
    width = max(len(one.way) for one in found)
    yield f"{'':{width}}  {'  '.join(f'{name:>9}' for name in CLOSE)}"
    for one in found:
        if one.differences is None:
            yield f"{one.way:{width}}  " + (f"refused: {one.refused}" if one.refused else f"FAILED: {one.failed}")
        else:
            cells = "  ".join(f"{one.differences[name]:9.1e}" for name in CLOSE)
            yield f"{one.way:{width}}  {cells}  {'same' if one.same else 'DIFFERS'}"
    yield ""
    bounds = ", ".join(f"{name} {bound:g}" for name, bound in CLOSE.items())
    yield f"differences from the first way; the same up to: {bounds} (of weights, in steps of the peak learning rate)"
