"""What the answers to a data set came to: a table, and the rows that were answered worst."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.prediction import measures

if TYPE_CHECKING:
    from rich.console import Console

WORST = 5
LONGEST = 300  # characters of a text that are shown
RANKED_BY = "rougeL"


@dataclass(frozen=True, slots=True)
class Answers:
    """The rows that a model answered: where it is, what a server calls it (empty of one that is here), and the rows."""

    model: str
    name: str
    rows: Sequence[Mapping[str, Any]]

    def named(self) -> dict[str, str]:
        """Where it is and, of a server's, its name."""
        return {"model": self.model} | ({"name": self.name} if self.name else {})


def results(answers: Answers, others: Answers | None, say: Callable[[str], None]) -> dict[str, Any]:
    """The measures of all answers, of one model or of two, and the worst rows of the first."""
    ours = answers.rows
    found: dict[str, Any] = {**answers.named(), "rows": len(ours), "measures": _measured(ours)}
    if "bleu" not in found["measures"]:
        say("BLEU is left out: pip install 'tunesmith[metrics]'")
    if note := measures.segmenter([row["label"] for row in ours]):
        say(note)
        found["words"] = note
    cut = sum(row["finish"] == "length" for row in ours)
    if cut:
        say(f"{cut:,} of {len(ours):,} answers were cut at max_new_tokens")
    found["cut"] = cut
    if others is not None:
        gained = measures.gained(ours, others.rows)
        found["against"] = {**others.named(), "measures": _measured(others.rows), "gained": gained}
    wrong = [row for row in ours if row["measures"]["exact_match"] < 1]
    worst = sorted(wrong, key=lambda row: row["measures"][RANKED_BY])[:WORST]
    found["worst"] = [{name: row[name] for name in ("where", "prompt", "prediction", "label")} for row in worst]
    return found


def _measured(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = measures.over(rows)
    score = measures.bleu([row["prediction"] for row in rows], [row["label"] for row in rows])
    if score is not None:
        found["bleu"] = {"mean": score[0], "signature": score[1]}
    return found


def table(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each measure, the first one the names of the columns."""
    against = found.get("against")
    lines = [("measure", _short(found), *((_short(against), "gained") if against else ()))]
    for name, value in found["measures"].items():
        line = [name, _number(value)]
        if against:
            gained = against["gained"].get(name) or {
                "mean": value["mean"] - against["measures"][name]["mean"]  # of BLEU, which no row has
            }
            line += [_number(against["measures"][name]), _number(gained, signed=True)]
        lines.append(tuple(line))
    return lines


def _short(found: Mapping[str, Any]) -> str:
    return str(found.get("name") or Path(found["model"]).name or found["model"])


def _number(value: Mapping[str, float], signed: bool = False) -> str:
    text = f"{value['mean']:+.4f}" if signed else f"{value['mean']:.4f}"
    known = value.get("interval", float("nan"))
    return f"{text} ± {known:.4f}" if known == known else text


def markdown(found: Mapping[str, Any]) -> str:
    """The table and the worst rows as a page."""
    head, *lines = table(found)
    text = [f"# {found['rows']:,} rows answered", "", _line(head), _line(["---"] * len(head)), *map(_line, lines), ""]
    text += ["± is half of a 95 % interval; of what is gained, that of the differences row by row.", ""]
    text += ["## The worst rows", ""] if found["worst"] else []
    for row in found["worst"]:
        text += [f"### {row['where']}", ""]
        for name in ("prompt", "prediction", "label"):
            quoted = "\n".join(f"> {line}" for line in shortened(row[name]).splitlines() or [""])
            text += [f"{name}:", "", quoted, ""]
    return "\n".join(text)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def shortened(text: str) -> str:
    """A text as it is shown: its end, where it is long, since what is asked stands there."""
    return text if len(text) <= LONGEST else f"... {text[-LONGEST:]}"


def show(found: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print the worst rows, and below them the table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = console or Console(highlight=False)
    head, *lines = table(found)
    shown = Table(*head, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for line in lines:
        shown.add_row(*line)
    if found["worst"]:
        console.print("the worst rows", style="bold")
    for row in found["worst"]:
        console.print(f"{row['where']}", style="bold", markup=False)
        for name in ("prompt", "prediction", "label"):
            text = " ".join(shortened(row[name]).split())
            console.print(f"  {name}: {text}", markup=False, soft_wrap=True)
    console.print(shown)
