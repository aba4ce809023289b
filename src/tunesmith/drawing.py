"""How the pictures of a run look, and their bytes."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUNS: dict[str, int] = {"compress_type": 3, "compress_level": 1}  # zlib's Z_RLE: a third quicker, and no larger
DOTS_PER_INCH = 200  # sharp on a dense screen; letters are sized for a width of 900
INK, GREY, RULE = "#1f2933", "#7b8794", "#e4e7eb"


def tidy(axes: "Axes", size: int) -> None:
    """Leave of a frame the line below, grey, with labels of a size in points."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(colors=GREY, labelsize=size, length=0)


def png(figure: "Figure") -> bytes:
    """A figure as a PNG; the same one is the same bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None}, pil_kwargs=RUNS)
    return content.getvalue()
