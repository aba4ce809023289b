"""What a recipe will need on one device, whether it fits, and the nearest recipe that does."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.component import name_of, refusal
from tunesmith.defaults import Device, resolve, with_values
from tunesmith.errors import ModelError, RecipeError
from tunesmith.planner.memory import Estimate, estimate
from tunesmith.planner.shapes import Shape, shape_of
from tunesmith.recipe import Recipe

AUTO_TOKENS, AUTO_STEP = 16_384, 256  # of train.row_tokens=auto, as engine/memory.py has them
SMALL = 100  # times the bytes of a model's files that whatever is trained of it needs less than
TIGHT = 0.1  # of the memory, of which less is soon taken by what is not counted
SHORTER = (1024, 512, 256)  # tokens of the longest sample that are tried


@dataclass(frozen=True)
class Target:
    """The device that is planned for."""

    device: Device
    memory_bytes: int | None  # None: not known, and nothing is said of fitting


@dataclass(frozen=True)
class Plan:
    """A resolved recipe, its model's shape, the memory of a step, and what would fit where it does not."""

    recipe: Recipe
    target: Target
    shape: Shape
    memory: Estimate
    words: tuple[tuple[str, ...], ...] = ()  # choices of words that fit, the least change first
    least: "tuple[tuple[str, ...], int] | None" = None  # where none does: the words that take least, and their peak

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within the device's memory; None: that is not known."""
        limit = self.target.memory_bytes
        return None if limit is None else self.memory.peak.total <= limit


def target_of(recipe: Recipe, memory_bytes: int | None) -> Target:
    """The device that `train.device` says: cuda is planned for anywhere; auto and others are this machine's.

    Without `memory_bytes` it is what is free on a device of this machine, and None elsewhere.
    """
    from tunesmith.engine.device import choose, free_memory_bytes, present

    if recipe.train.device == "cuda" and "cuda" not in present():
        return Target(Device("cuda", "a CUDA device", True), memory_bytes)
    device = choose(recipe.train.device)
    return Target(device, free_memory_bytes(device.type) if memory_bytes is None else memory_bytes)


def make(recipe: Recipe, target: Target, config: Any | None = None) -> Plan:
    """The plan of a recipe; `config` in place of that of `model.path`.

    Raises:
        ModelError, RecipeError: as `shapes.shape_of` and `defaults.resolve`.
    """
    planner = _Planner(target, config)
    found = planner.plan(recipe)
    if found.fits is not False:
        return found
    words = tuple(planner.fitting(recipe))
    return replace(found, words=words, least=None if words else planner.least(recipe))


def warning(recipe: Recipe) -> str | None:
    """What is said before a run of one process that will not fit in this machine's device; None: nothing.

    Small models fit, and of others that `make` does not know the run itself says what is wrong.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return None
    try:
        target = target_of(recipe, None)
        if target.memory_bytes is None or _is_small(recipe.model.path, target.memory_bytes):
            return None
        found = make(recipe, target)
    except (ModelError, RecipeError):
        return None
    if found.fits is not False:
        return None
    needed, limit = found.memory.peak.total, target.memory_bytes
    instead = f": try {' '.join(found.words[0])}" if found.words else ""
    return f"warning: the plan says that this needs {_gb(needed)}, and {_gb(limit)} are free{instead}"


def _is_small(path: str, memory_bytes: int) -> bool:
    """Whether a model's files are so small beside the memory that whatever is trained of it fits."""
    if path.startswith("builtin:"):
        return True
    files = list(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    return bool(files) and SMALL * sum(one.stat().st_size for one in files) < memory_bytes


@dataclass(frozen=True)
class _Planner:
    """Plans recipes that differ in some options of one model on one device."""

    target: Target
    config: Any | None
    shapes: dict[Any, Shape] = field(default_factory=dict)  # by what decides them

    def plan(self, recipe: Recipe) -> Plan:
        """The plan of a recipe alone."""
        recipe = resolve(recipe, self.target.device).recipe
        key = repr((recipe.adapter, recipe.model))
        if key not in self.shapes:
            self.shapes[key] = shape_of(recipe, self.config)
        shape, rows = self.shapes[key], [recipe.train.row_tokens]
        if rows == ["auto"]:
            least = recipe.data.max_tokens
            rows = [*range(max(least, AUTO_TOKENS) // AUTO_STEP * AUTO_STEP, least, -AUTO_STEP), least]
            rows = rows if self.target.memory_bytes is not None else rows[-1:]
        for tokens in rows:
            one = with_values(recipe, {"train.row_tokens": tokens})
            found = Plan(one, self.target, shape, estimate(one, shape, self.target.device))
            if found.fits:
                break
        return found

    def changes(self, recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
        """What may be changed of a recipe that was planned for."""
        shapes = self.shapes.values()
        stored, checkpoints = any(one.stored_in for one in shapes), all(one.checkpoints for one in shapes)
        for word, values in _changes(recipe, self.target.device, stored, checkpoints):
            if _is_taken(with_values(recipe, values)):
                yield word, values

    def fitting(self, recipe: Recipe) -> Iterator[tuple[str, ...]]:
        """Single changes that fit; where there is none, changes one after the other until they do.

        What one change opens, as an adapter does a base in 4 bits, comes after it; a later word for an option is the
        one that is said.
        """
        changes = list(self.changes(recipe))
        alone = [(word,) for word, values in changes if self.plan(with_values(recipe, values)).fits]
        if alone:
            yield from alone
            return
        for taken, plan in self.together(recipe):
            if plan.fits:
                yield taken
                return

    def least(self, recipe: Recipe) -> tuple[tuple[str, ...], int] | None:
        """The changes that take least together, and their peak in bytes."""
        found = [(taken, plan.memory.peak.total) for taken, plan in self.together(recipe)]
        return min(found, key=lambda one: one[1], default=None)

    def together(self, recipe: Recipe) -> Iterator[tuple[tuple[str, ...], Plan]]:
        """Changes that are made one after the other: the words so far, and their plan."""
        taken: dict[str, dict[str, Any]] = {}
        while change := next(self.changes(recipe), None):
            word, values = change
            taken = {one: set_ for one, set_ in taken.items() if not set_.keys() & values.keys()} | {word: values}
            recipe = with_values(recipe, values)
            yield tuple(taken), self.plan(recipe)


def _is_taken(recipe: Recipe) -> bool:
    """Whether a recipe of which something was changed is one that can be said."""
    try:
        Recipe(**recipe.model_dump(exclude_unset=True))
    except RecipeError:
        return False
    return True


def _changes(
    recipe: Recipe, device: Device, stored: bool = False, checkpoints: bool = True
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Words that take less memory, those that change a run least first, with the values they set.

    A base that is stored in few bits is held in no others; `checkpoints` says whether the model computes activations
    again.
    """
    from tunesmith.adapters.lora import LoRA
    from tunesmith.optimizers.adamw8bit import AdamW8bit
    from tunesmith.quantizations.bnb_4bit import FourBit

    train, beside = recipe.train, type(recipe.adapter).beside
    shortest = resolve(with_values(recipe, {"train.row_tokens": None}), device).recipe.train.row_tokens
    assert isinstance(shortest, int), "derived"
    if checkpoints and train.activation_checkpointing is not True:
        yield "train.activation_checkpointing=true", {"train.activation_checkpointing": True}
    if train.per_device_train_batch_size > 1:
        yield "train.per_device_train_batch_size=1", {"train.per_device_train_batch_size": 1}
    if isinstance(train.row_tokens, int) and train.row_tokens > shortest:
        yield f"train.row_tokens={shortest}", {"train.row_tokens": shortest}
    if name_of(recipe.optimizer) == "adamw":
        yield "optimizer.type=adamw8bit", {"optimizer": AdamW8bit(**dict(recipe.optimizer))}
    if not beside:
        yield "adapter=lora", {"adapter": LoRA()}
    held, wide = recipe.model.frozen_dtype, recipe.model.quantization is None and not stored
    if held is None and wide and device.type == "cpu" and beside:
        yield "model.frozen_dtype=int8", {"model.frozen_dtype": "int8"}
    if wide and not recipe.model.from_scratch and refusal([recipe.adapter, FourBit()]) is None:
        instead = "" if held is None else " model.frozen_dtype=null"
        yield f"model.quantization=bnb_4bit{instead}", {"model.quantization": FourBit(), "model.frozen_dtype": None}
    said = "" if train.row_tokens is None else " train.row_tokens=null"
    for tokens in SHORTER:
        if tokens < recipe.data.max_tokens:
            yield f"data.max_tokens={tokens}{said}", {"data.max_tokens": tokens, "train.row_tokens": None}


def lines(plan: Plan) -> Iterator[str]:
    """A plan as a person reads it."""
    recipe, peak = plan.recipe, plan.memory.peak
    counts = plan.shape.counts()
    whole, trained = (sum(group[kind] for group in counts.values()) for kind in ("all", "trained"))
    yield f"{recipe.model.path} on {plan.target.device.name} ({plan.target.device.type})"
    train = recipe.train
    tokens = f"{train.row_tokens:,} tokens" + (
        f" x {train.per_device_train_batch_size}" if train.per_device_train_batch_size > 1 else ""
    )
    checkpointing = str(train.activation_checkpointing).lower()
    quantization = recipe.model.quantization
    held = "" if quantization is None else f" over {name_of(quantization)}"
    if plan.shape.stored_in is not None:
        held = f" over {plan.shape.stored_in}, as stored"
    yield (
        f"row {tokens}, {recipe.model.dtype}{held}, {name_of(recipe.adapter)}, {name_of(recipe.optimizer)}, "
        f"activation_checkpointing {checkpointing}"
    )
    yield ""
    yield f"parameters   {whole:,}, trained {trained:,}"
    for name, group in counts.items():
        yield f"  {name:11}{group['all']:>15,}" + (f"  trained {group['trained']:,}" if group["trained"] else "")
    yield ""
    yield f"predicted peak {_gb(peak.total)}, at {peak.name}:"
    for name, size in peak.parts.items():
        yield f"  {name:17}{_gb(size):>10}"
    yield from _verdict(plan)


def _verdict(plan: Plan) -> Iterator[str]:
    limit = plan.target.memory_bytes
    if limit is None:
        return
    if plan.fits:
        left = limit - plan.memory.peak.total
        tight = ", less than a tenth: gaps of an allocator are not counted" if left < limit * TIGHT else ""
        yield f"it fits in {_gb(limit)}: {_gb(left)} are left{tight}"
        return
    yield f"it does not fit in {_gb(limit)}: {_gb(plan.memory.peak.total - limit)} are missing"
    for words in plan.words:
        yield f"  fits with: {' '.join(words)}"
    if not plan.words:
        near = "" if plan.least is None else f", and least takes {_gb(plan.least[1])}: {' '.join(plan.least[0])}"
        yield f"  nothing that is tried here fits{near}"
        yield "  take a smaller model, or share this one out among several devices (--devices)"


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan as a program reads it; bytes everywhere."""
    peak = plan.memory.peak
    return {
        "device": plan.target.device.type,
        "memory_bytes": plan.target.memory_bytes,
        "row_tokens": plan.recipe.train.row_tokens,
        "parameters": plan.shape.counts(),
        "peak_bytes": peak.total,
        "peak_at": peak.name,
        "moments": [{"name": one.name, "bytes": one.total, "parts": dict(one.parts)} for one in plan.memory.moments],
        "fits": plan.fits,
        "fits_with": [list(words) for words in plan.words],
    }


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
