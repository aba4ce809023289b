"""loss.png: the course of the loss, of the held-out loss and of the learning rate."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import atomic, drawing
from tunesmith.drawing import DOTS_PER_INCH, GREY, INK, RULE
from tunesmith.engine.metrics import Smooth, three_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (9.0, 5.0)
LOSS, HELD_OUT, RATE = "#2563eb", "#d9480f", "#9aa5b1"
SHARE_SMOOTHED = 0.04  # of all points: the span of the smoothed line


def loss_picture(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the lines of metrics.jsonl as a PNG of 1800 x 1000 dots, written whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
    axes = figure.subplots()
    _draw_rate(axes, lines)
    _draw_loss(axes, lines)
    _draw_held_out(axes, lines)
    _tidy(axes)
    atomic.write(path, drawing.png(figure))


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """The steps at which `name` was logged, and its values; null is NaN, which is drawn as a gap."""
    found = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in found], [math.nan if value is None else value for _, value in found]


def _draw_loss(axes: "Axes", lines: Sequence[Mapping[str, Any]]) -> None:
    steps, losses = _points(lines, "loss")
    if not steps:
        return
    mean = Smooth(span=max(1.0, SHARE_SMOOTHED * len(losses)))
    smooth = [mean.add(loss) for loss in losses]
    dot = "o" if len(steps) == 1 else ""
    axes.plot(steps, losses, color=LOSS, alpha=0.28, linewidth=0.8)
    axes.plot(steps, smooth, color=LOSS, linewidth=2.0, marker=dot, label="loss", solid_capstyle="round")


def _draw_held_out(axes: "Axes", lines: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.patheffects import withStroke

    steps, losses = _points(lines, "eval_loss")
    if not steps:
        return
    axes.plot(
        steps, losses, color=HELD_OUT, linewidth=1.0, linestyle=(0, (1, 2)), marker="o", markersize=6.5,
        markeredgecolor="white", label="held-out loss", clip_on=False, zorder=4,
    )  # fmt: skip
    look: dict[str, Any] = {"color": HELD_OUT, "size": 11, "weight": "bold", "zorder": 5}
    halo = [withStroke(linewidth=3, foreground="white")]
    sides = {0: "left"} if len(steps) == 1 else {0: "left", len(steps) - 1: "right"}
    for index, side in sides.items():
        axes.annotate(
            three_digits(losses[index]), (steps[index], losses[index]), textcoords="offset points",
            xytext=(0, 8), ha=side, va="bottom", path_effects=halo, **look,
        )  # fmt: skip


def _draw_rate(axes: "Axes", lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw the learning rate behind the losses, on an axis of its own that only says where its top is."""
    steps, rates = _points(lines, "learning_rate")
    top = max((rate for rate in rates if math.isfinite(rate)), default=0.0)
    if top == 0:
        return
    behind = axes.twinx()
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    behind.plot(steps, rates, color=RATE, linewidth=1.0, linestyle=(0, (4, 3)))
    behind.set_ylim(0, 1.1 * top)
    behind.set_yticks([0, top], labels=["0", f"{top:.1e}"])
    behind.set_ylabel("learning rate", color=RATE, fontsize=10, labelpad=-22)
    behind.tick_params(colors=RATE, labelsize=9, length=0)
    behind.spines[:].set_visible(False)


def _tidy(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step", color=GREY, fontsize=10)
    axes.set_ylabel("loss", color=GREY, fontsize=10)
    axes.margins(x=0.02, y=0.12)
    if axes.get_ylim()[0] < 0 <= axes.dataLim.y0:  # the margin alone reaches below 0
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    drawing.tidy(axes, size=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", frameon=False, fontsize=10, labelcolor=INK)
