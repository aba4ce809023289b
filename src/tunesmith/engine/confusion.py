"""confusion.png: which class held-out samples had, and which one the model said."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunesmith import atomic, drawing
from tunesmith.drawing import DOTS_PER_INCH, GREY, INK

MOST_WRITTEN = 20  # classes up to which each count is written into its place
SIGNS = 18  # of a class's name


def confusion_picture(counts: Sequence, names: Sequence[str], path: Path) -> None:
    """Draw counts [C, C], right class by said class, as a PNG, written whole or not at all.

    Where several classes can hold at once the counts are [C, 2, 2], and each class is drawn by whether it held.
    """
    from matplotlib.figure import Figure

    matrix, columns, across = np.asarray(counts), list(names), "said"
    if matrix.ndim == 3:
        matrix = matrix.reshape(-1, 4)
        columns, across = ["rightly not said", "wrongly said", "missed", "rightly said"], ""
    side = min(14.0, 3.0 + 0.5 * len(names))
    figure = Figure(
        figsize=(max(side, 6.0), max(side, 3.5)), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white"
    )
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=30, ha="right")
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    if len(names) <= MOST_WRITTEN:
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if share[row, column] > 0.5 else INK
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, size=10)
    axes.set_xlabel(across, color=GREY, fontsize=10)
    axes.set_ylabel("right", color=GREY, fontsize=10)
    axes.tick_params(colors=GREY, labelsize=9, length=0)
    axes.spines[:].set_visible(False)
    atomic.write(path, drawing.png(figure))


def _short(name: str) -> str:
    return name if len(name) <= SIGNS else f"{name[: SIGNS - 1]}…"
