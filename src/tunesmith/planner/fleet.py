"""A recipe on several devices: what each layout needs and how quick it is, which to take, and the words for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.component import name_of
from tunesmith.defaults import Device, resolve, with_values
from tunesmith.planner.devices import HOST_MEMORY, Cluster
from tunesmith.planner.layout import Layout, layouts
from tunesmith.planner.pace import REACHED, Pace, pace, share_of_peak
from tunesmith.planner.shapes import Shape, shape_of
from tunesmith.planner.spread import Share, share
from tunesmith.recipe import Recipe
from tunesmith.recipe_parallel import problem_among

DAY = 86_400  # seconds
ROOM = 0.9  # of a device's memory that is planned to be filled: allocators leave gaps, and predictions are off
DEEPSPEED = 4  # of `Layout.rank`, from which on it is DeepSpeed's
SHORT_SECONDS = 0.01  # of a step, of which starting its kernels is no small part
NEAR = 0.97  # of the quickest pace: among layouts that reach it, the simplest is taken


@dataclass(frozen=True)
class Choice:
    """A layout, what a device needs, and the pace."""

    layout: Layout
    share: Share
    pace: Pace
    fits: bool
    refused: str | None  # why the recipe cannot be trained so
    of_peak: float

    @property
    def tokens_per_day(self) -> float:
        """Of all devices."""
        return self.pace.tokens_per_second * DAY


@dataclass(frozen=True)
class Fleet:
    """A resolved recipe on some machines, and its choices: those that fit first, the quickest before others."""

    recipe: Recipe
    cluster: Cluster
    shape: Shape
    choices: tuple[Choice, ...]
    price: float | None = None  # of a device for an hour

    @property
    def best(self) -> Choice | None:
        """The quickest that fits and that the recipe can be trained in, or a simpler one that is as good as that.

        DeepSpeed is for what fits no other way, and offload for what fits no way without.
        """
        found = [one for one in self.choices if one.fits and one.refused is None]
        last = min((one.layout.rank for one in found), default=0)
        found = [one for one in found if one.layout.rank < DEEPSPEED or one.layout.rank == last]
        near = [one for one in found if one.pace.tokens_per_second >= NEAR * found[0].pace.tokens_per_second]
        return min(near, key=lambda one: one.layout.rank, default=None)


def make(recipe: Recipe, cluster: Cluster, price: float | None = None, config: Any | None = None) -> Fleet:
    """The plan of a recipe on some machines; `config` in place of that of `model.path`.

    Raises:
        ModelError, RecipeError: as `shapes.shape_of` and `defaults.resolve`.
    """
    device = Device("cuda", cluster.device.name, True)
    recipe = resolve(with_values(recipe, {"train.device": "cuda"}), device).recipe
    shape = shape_of(recipe, config)
    return Fleet(_counted(recipe), cluster, shape, tuple(choices(recipe, shape, cluster)), price)


def _counted(recipe: Recipe) -> Recipe:
    """A recipe whose rows have a number of tokens: what fits, `train.row_tokens=auto`, is at least the longest."""
    rows = recipe.train.row_tokens
    return with_values(recipe, {"train.row_tokens": recipe.data.max_tokens if rows == "auto" else rows})


def choices(recipe: Recipe, shape: Shape, cluster: Cluster) -> list[Choice]:
    """Every layout of a resolved recipe: those that fit first, and the quickest before others."""
    counted = _counted(recipe)
    assert isinstance(counted.train.row_tokens, int), "resolved before"
    device = Device("cuda", cluster.device.name, True)
    longest = min(recipe.data.max_tokens, counted.train.row_tokens)
    found = []
    for layout in layouts(cluster, shape, counted.train.row_tokens):
        needs, quick = share(counted, shape, device, layout), pace(counted, shape, layout, cluster)
        fits = max(_lacks(needs, cluster)) <= 0
        refused = problem_among(layout.told(recipe), layout.devices)
        reached = share_of_peak(quick, shape, longest, cluster)
        found.append(Choice(layout, needs, quick, fits, refused, reached))
    return sorted(found, key=lambda one: (not one.fits, -one.pace.tokens_per_second))


def _lacks(needs: Share, cluster: Cluster) -> tuple[float, float]:
    """The bytes that a device lacks, and those that the memory of its machine does; less than 0 where some are left."""
    return needs.peak.total - ROOM * cluster.device.memory, needs.host * cluster.each - HOST_MEMORY


def lines(fleet: Fleet) -> Iterator[str]:
    """A plan as a person reads it."""
    recipe, cluster = fleet.recipe, fleet.cluster
    machines = f"{cluster.nodes} x {cluster.each}" if cluster.nodes > 1 else f"{cluster.each}"
    yield f"{recipe.model.path} on {machines} x {cluster.device.name}"
    rows = f"{recipe.train.row_tokens:,} tokens"
    rows += f" x {batch}" if (batch := recipe.train.per_device_train_batch_size) > 1 else ""
    yield (
        f"row {rows}, {recipe.model.dtype}, {name_of(recipe.adapter)}, {name_of(recipe.optimizer)}, "
        f"activation_checkpointing {str(recipe.train.activation_checkpointing).lower()}"
    )
    yield ""
    cost = "" if fleet.price is None else "   cost of 1e9 tokens"
    heads = f"{'GB a device':>12}{'fits':>6}{'step':>10}{'tokens/s':>12}{'tokens/day':>12}{'of peak':>9}{cost}"
    yield f"{'layout':28}{heads}"
    for one in fleet.choices:
        price = "" if fleet.price is None else f"{cost_of(fleet, one):>21,.2f}"
        yield (
            f"{f'{one.layout}{_mark(one)}':28}{one.share.peak.total / 1e9:>12,.1f}{'yes' if one.fits else 'no':>6}"
            f"{_seconds(one.pace.seconds):>10}{one.pace.tokens_per_second:>12,.0f}{one.tokens_per_day:>12.2e}"
            f"{one.of_peak:>9.0%}{price}"
        )
    yield ""
    yield from _words(fleet)
    yield f"fits: in {ROOM:.0%} of {cluster.device.memory / 1e9:,.0f} GB"
    yield f"rates: {cluster.device.source}; of its peak products are taken to reach {REACHED:.0%}"
    if any(one.pace.seconds < SHORT_SECONDS for one in fleet.choices):
        yield "steps this short are mostly the starting of kernels, which no rate here counts: they will take longer"
    yield from _verdict(fleet)


def _words(fleet: Fleet) -> Iterator[str]:
    """The words that select each layout, the simplest first, and why others cannot be had."""
    refused: dict[str, list[str]] = {}
    for one in sorted(fleet.choices, key=lambda one: one.layout.rank):
        if one.refused is not None:
            refused.setdefault(one.refused, []).append(str(one.layout))
        elif words := one.layout.words(fleet.recipe):
            yield f"{str(one.layout):28}{' '.join(words)}"
    for why, names in refused.items():
        yield f"* {', '.join(names)}: {why}"


def _verdict(fleet: Fleet) -> Iterator[str]:
    best, recipe, cluster = fleet.best, fleet.recipe, fleet.cluster
    if best is not None:
        words = [*best.layout.words(recipe), *started(fleet)]
        yield f"take {best.layout}: {' '.join(words) or 'no word need be said'}"
        return
    had = [(one, *_lacks(one.share, cluster)) for one in fleet.choices if one.refused is None]
    if not had:
        yield f"the recipe cannot be trained on {cluster.devices} devices, for the reasons above"
        return
    nearest, device, host = min(had, key=lambda one: max(one[1:]))
    smaller = [] if type(recipe.adapter).beside else ["adapter=lora"]
    if host > device:
        yield (
            f"nothing fits: {nearest.layout} lacks least, {host / 1e9:,.1f} GB of a machine's own memory, of which "
            f"{HOST_MEMORY / 1e9:,.0f} GB are planned with"
        )
        yield f"  {' or '.join(['more machines', *smaller])} take less of each"
        return
    limit = ROOM * cluster.device.memory / 1e9
    yield f"nothing fits in {limit:,.0f} GB: {nearest.layout} lacks least, {device / 1e9:,.1f} GB, for"
    for name, size in sorted(nearest.share.peak.parts.items(), key=lambda part: -part[1])[:3]:
        yield f"  {name:17}{size / 1e9:>10,.2f} GB"
    if fleet.shape.checkpoints and recipe.train.activation_checkpointing is not True:
        smaller.insert(0, "train.activation_checkpointing=true")
    yield f"  {' or '.join(['more devices', 'a shorter row', *smaller])} take less"


def started(fleet: Fleet) -> tuple[str, ...]:
    """The words that start its processes."""
    if fleet.cluster.devices == 1:
        return ()
    words = ("launcher=torchrun", f"launcher.nproc_per_node={fleet.cluster.each}")
    many = (f"launcher.nnodes={fleet.cluster.nodes}", "launcher.rdzv_endpoint=HOST:29500")
    return (*words, *(many if fleet.cluster.nodes > 1 else ()))


def _mark(choice: Choice) -> str:
    return "" if choice.refused is None else " *"


def cost_of(fleet: Fleet, choice: Choice) -> float:
    """What 1e9 tokens cost at the fleet's price."""
    assert fleet.price is not None
    return fleet.price * fleet.cluster.devices * 1e9 / choice.pace.tokens_per_second / 3600


def _seconds(value: float) -> str:
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1e3:,.3g} ms"


def as_json(fleet: Fleet) -> dict[str, Any]:
    """A plan as a program reads it; bytes and seconds everywhere."""
    return {
        "device": fleet.cluster.device.name,
        "devices": fleet.cluster.devices,
        "nodes": fleet.cluster.nodes,
        "memory_bytes": fleet.cluster.device.memory,
        "row_tokens": fleet.recipe.train.row_tokens,
        "parameters": fleet.shape.counts(),
        "choices": [
            {
                "layout": str(one.layout),
                "words": list(one.layout.words(fleet.recipe)),
                "fits": one.fits,
                "refused": one.refused,
                "peak_bytes": one.share.peak.total,
                "peak_at": one.share.peak.name,
                "parts": dict(one.share.peak.parts),
                "host_bytes": one.share.host,
                "step_seconds": one.pace.seconds,
                "tokens_per_second": one.pace.tokens_per_second,
                "share_of_peak": one.of_peak,
                "cost_of_1e9_tokens": None if fleet.price is None else cost_of(fleet, one),
            }
            for one in fleet.choices
        ],
        "take": None if fleet.best is None else [*fleet.best.layout.words(fleet.recipe), *started(fleet)],
    }
