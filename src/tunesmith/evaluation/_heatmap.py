"""The picture of a needle in a haystack: shares by depth and length."""

from collections.abc import Sequence

from tunesmith import drawing
from tunesmith.drawing import DOTS_PER_INCH, GREY, INK

WORST, MIDDLE, BEST = "#d9480f", "#f8e7b9", "#0f9d76"
CELL = (1.15, 0.62)  # inches
LABEL_SIZE = 10


def heatmap(
    shares: Sequence[Sequence[float]], depths: Sequence[float], lengths: Sequence[int], made_for: int | None
) -> bytes:
    """Draw shares [depths, lengths] from 0 to 1 as a PNG, with a line behind the length the model is made for."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    size = (1.6 + CELL[0] * len(lengths), 1.5 + CELL[1] * len(depths))
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("found", [WORST, MIDDLE, BEST])
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for row, of_depth in enumerate(shares):
        for column, share in enumerate(of_depth):
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=INK, fontsize=LABEL_SIZE)
    within = sum(length <= made_for for length in lengths) if made_for is not None else 0
    if 0 < within < len(lengths):
        axes.axvline(within - 0.5, color=INK, linewidth=1.5, linestyle=(0, (4, 3)))
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_xlabel("tokens of the prompt", color=GREY, fontsize=LABEL_SIZE)
    axes.set_ylabel("depth of the fact", color=GREY, fontsize=LABEL_SIZE)
    axes.set_title("Right answers", loc="left", color=INK, fontsize=12, pad=10)
    drawing.tidy(axes, size=LABEL_SIZE)
    return drawing.png(figure)
