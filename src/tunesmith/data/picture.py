"""data.png: how long the samples are, and what each source has of them."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunesmith import drawing
from tunesmith.data.lengths import in_order, readable
from tunesmith.drawing import DOTS_PER_INCH, GREY, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 9.0, 4.6  # inches
BAR = "#2563eb"
SHADES = ("#2563eb", "#f59e0b", "#0f9d76", "#c026d3", "#dc2626", "#0891b2", "#84cc16")
OTHERS = "#9aa5b1"
LONGEST_NAME = 38  # characters
LABEL_SIZE = 9  # points
FEWEST_BARS = 9  # that the axis has room for, so that few are no walls
ROOM = 0.06  # the least share whose percentage stands in its bar


def data_picture(account: Mapping[str, Any]) -> bytes:
    """Draw the training part of ledger.json as a PNG, 1800 dots wide."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    several = len(account["sources"]) > 1
    height = HEIGHT + (1.5 + 0.22 * min(len(account["sources"]), len(SHADES) + 1) if several else 0)
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12, hspace=0.06)
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout=layout, facecolor="white")
    if several:
        above, below = figure.subplots(2, 1, height_ratios=(HEIGHT, height - HEIGHT))
        _draw_shares(below, account)
    else:
        above = figure.subplots()
    _draw_lengths(above, account)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
        return drawing.png(figure)


def _draw_lengths(axes: "Axes", account: Mapping[str, Any]) -> None:
    rows = in_order(account["lengths"])
    counts = [count for _, count in rows]
    places = range(len(rows))
    axes.bar(places, counts, width=0.86, color=BAR, linewidth=0)
    for place, count in zip(places, counts, strict=True):
        if count:
            axes.annotate(
                f"{count:,}", (place, count), (0, 3), textcoords="offset points", ha="center", color=INK, fontsize=8
            )
    axes.set_xticks(places, [readable(label).replace("-", "–\n") for label, _ in rows])
    middle, room = (len(rows) - 1) / 2, max(len(rows), FEWEST_BARS) / 2
    axes.set_xlim(middle - room - 0.1, middle + room + 0.1)
    axes.margins(y=0.1)
    title = f"{account['samples']:,} samples by their length in tokens"
    axes.set_title(title, loc="left", color=INK, fontsize=12, pad=12)
    axes.set_title(_percentiles(account), loc="right", color=GREY, fontsize=9, pad=12)
    drawing.tidy(axes, LABEL_SIZE)
    axes.set_yticks([])


def _percentiles(account: Mapping[str, Any]) -> str:
    found = account.get("length_percentiles", {})
    if not found:
        return f"longest {account['longest_tokens']:,}"
    parts = (f"half up to {found['50']:,}", *(f"{percent}% up to {found[percent]:,}" for percent in ("90", "99")))
    return "    ".join((*parts, f"longest {found['longest']:,}"))


def _draw_shares(axes: "Axes", account: Mapping[str, Any]) -> None:
    """Draw what each source has of rows, samples and tokens, and of an epoch where that differs, as bars of 100%."""
    bars = {"samples": "samples", "tokens": "tokens", "trained": "trained_tokens"}
    columns = {title: {name: own[key] for name, own in account["sources"].items()} for title, key in bars.items()}
    epoch = account.get("epoch")
    if epoch is not None and epoch["samples"] != account.get("samples_trained"):
        columns["tokens of\nan epoch"] = {name: own["tokens"] for name, own in epoch["sources"].items()}
    names = sorted(account["sources"], key=lambda name: -columns["tokens"][name])
    shown, rest = names[: len(SHADES)], names[len(SHADES) :]
    for place, counts in enumerate(columns.values()):
        total, start = max(1, sum(counts.values())), 0.0
        parts = [counts[name] for name in shown] + ([sum(counts[name] for name in rest)] if rest else [])
        for number, part in enumerate(parts):
            share = part / total
            colour = SHADES[number] if number < len(shown) else OTHERS
            axes.barh(place, share, left=start, height=0.66, color=colour, edgecolor="white", linewidth=1.2)
            if share >= ROOM:
                at = (start + share / 2, place)
                axes.annotate(f"{share:.0%}", at, ha="center", va="center", color="white", fontsize=9, weight="bold")
            start += share
    axes.set_yticks(range(len(columns)), list(columns))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("What each source brings", loc="left", color=INK, fontsize=12, pad=8)
    drawing.tidy(axes, LABEL_SIZE)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    _name_sources(axes, [*map(_short, shown), *([f"{len(rest)} others"] if rest else [])])


def _name_sources(axes: "Axes", names: list[str]) -> None:
    from matplotlib.patches import Patch

    colours = [*SHADES[: len(names)], OTHERS][: len(names)]
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(-0.01, -0.02), ncols=2, frameon=False, fontsize=9,
        labelcolor=INK, handlelength=0.9, handleheight=0.9, columnspacing=2.5,
    )  # fmt: skip


def _short(name: str) -> str:
    """A source's name, its end where it is too long; no sign of it starts a formula."""
    short = name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]
    return short.replace("$", r"\$")
