"""What an evaluation found, for people: tables in a terminal and a page of Markdown."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def tables(results: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Mapping[str, Any]], str]]:
    """The tables of some results: what each is of, its rows, and what is to be said under it."""
    for name, one in results["tasks"].items():
        intervals = one["intervals"]
        numbers = [
            {"": metric, "value": value, **dict(zip(("low", "high"), intervals.get(metric, ("", "")), strict=True))}
            for metric, value in one["metrics"].items()
        ]
        plain = [{key: row[key] for key in ("", "value")} for row in numbers]
        yield name, one["table"] or (numbers if intervals else plain), "from the cache" if one["cached"] else ""
    for name, one in results.get("against", {}).get("tasks", {}).items():
        yield f"{name}: tuned and prompted", one["rows"], one["verdict"]


def show(results: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print the tables."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = console or Console(highlight=False)
    console.print(_head(results), markup=False, soft_wrap=True)
    for name, rows, said in tables(results):
        table = Table(*rows[0], title=name, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
        for row in rows:
            table.add_row(*map(readable, row.values()))
        console.print(table)
        if said:
            console.print(said, markup=False, soft_wrap=True)


def markdown(results: Mapping[str, Any]) -> str:
    """The tables as a page, with the options of each task."""
    text = ["# Evaluation", "", _head(results), ""]
    for name, rows, said in tables(results):
        text += [f"## {name}", "", _line(rows[0]), _line(["---"] * len(rows[0]))]
        text += [_line(map(readable, row.values())) for row in rows] + [""]
        text += [said, ""] if said and said != "from the cache" else []
        options = results["tasks"].get(name, {}).get("options", {})
        text += ["Options: " + ", ".join(f"`{key}={value}`" for key, value in options.items()), ""] if options else []
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    text += ["Intervals (low to high) hold the true number in 95 % of cases.", "", f"With {versions}.", ""]
    return "\n".join(text)


def _head(results: Mapping[str, Any]) -> str:
    made_for = results["context_tokens"]
    return str(results["model"]) + (f", made for {made_for:,} tokens" if made_for is not None else "")


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def readable(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 or not math.isfinite(value) else f"{value:.3e}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
