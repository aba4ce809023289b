"""ranks.png: how many ranks each layer was left with."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tunesmith import atomic, drawing
from tunesmith.drawing import DOTS_PER_INCH, GREY, INK

MOST_WRITTEN = 40  # decoder layers up to which each rank is written into its place


def ranks_picture(ranks: Mapping[str, int], path: Path) -> None:
    """Draw ranks by the names of adapted parameters, decoder layer by kind of layer, as a PNG."""
    from matplotlib.figure import Figure

    names, numbers, matrix = table(ranks)
    figure = Figure(
        figsize=(max(6.0, 2.0 + 0.35 * len(numbers)), max(2.5, 1.2 + 0.4 * len(names))),
        dpi=DOTS_PER_INCH, layout="constrained", facecolor="white",
    )  # fmt: skip
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=np.nanmax(matrix), aspect="auto")
    axes.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    axes.set_yticks(range(len(names)), names)
    if len(numbers) <= MOST_WRITTEN:
        for (row, column), rank in np.ndenumerate(matrix):
            if not np.isnan(rank):
                colour = "white" if rank > np.nanmax(matrix) / 2 else INK
                axes.text(column, row, f"{rank:.0f}", ha="center", va="center", color=colour, size=9)
    axes.set_xlabel("layer", color=GREY, fontsize=10)
    axes.tick_params(colors=GREY, labelsize=9, length=0)
    axes.spines[:].set_visible(False)
    atomic.write(path, drawing.png(figure))


def table(ranks: Mapping[str, int]) -> tuple[list[str], list[int], np.ndarray]:
    """Kinds of layers, numbers of decoder layers, and the rank of each [kinds, numbers]; NaN where there is none."""
    found: dict[tuple[str, int], int] = {}
    for name, rank in ranks.items():
        number = re.search(r"\.(\d+)\.", name)
        kind = name.partition(".lora_")[0].rpartition(".")[2]
        found[kind, int(number[1]) if number else 0] = rank
    names, numbers = list(dict.fromkeys(kind for kind, _ in found)), sorted({number for _, number in found})
    matrix = np.array([[found.get((kind, number), np.nan) for number in numbers] for kind in names], float)
    return names, numbers, matrix
