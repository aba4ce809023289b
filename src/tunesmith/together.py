"""Which components go together in one recipe: a walk over what each says of the others (`Component.refuses`).

Recipes are checked by the same word (`component.refusal`); here it becomes a page, the help of each component, and the
list of what the self-test tries.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from tunesmith.component import Component, all_of, refusal
from tunesmith.seams import Adapter, Objective, Optimizer, Quantization

SEAMS: tuple[type[Component], ...] = (Objective, Adapter, Optimizer, Quantization)
INTRODUCTION = """# What goes together

Written by `tunesmith options --compatibility`; a test compares the two.

These are every {seams} that ship with tunesmith, and what each says
of the others when nothing but its name is said. A recipe is checked by the same word before anything is loaded, and
`tunesmith doctor --selftest` tries it. A dot: both go together. A number: they do not, for the reason below.
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two components of different seams, by name, and why they do not go together; None where they do."""

    first: str
    second: str
    reason: str | None


def pairs(first: type[Component], second: type[Component]) -> Iterator[Pair]:
    """Every component of one seam with every one of another, each as its name alone says it."""
    others = {name: kind() for name, kind in all_of(second).items()}
    for name, kind in all_of(first).items():
        for other, component in others.items():
            yield Pair(name, other, refusal([kind(), component]))


def refused(base: type[Component], name: str) -> dict[str, list[str]]:
    """Why a component does not go with some of other seams: each reason, and those that it is about."""
    found: dict[str, list[str]] = {}
    component = all_of(base)[name]()
    for seam in SEAMS:
        if seam is not base:
            for other, kind in all_of(seam).items():
                reason = refusal([component, kind()])
                if reason is not None:
                    found.setdefault(reason, []).append(f"{seam.__name__.lower()}={other}")
    return found


def page() -> str:
    """The tables of all pairs as Markdown."""
    named = [seam.__name__.lower() for seam in SEAMS]
    parts = [INTRODUCTION.format(seams=f"{', '.join(named[:-1])} and {named[-1]}")]
    for first, second in combinations(SEAMS, 2):
        found, title = list(pairs(first, second)), f"{first.__name__} and {second.__name__.lower()}"
        together = all(pair.reason is None for pair in found)
        parts.append(f"## {title}\n\n{'Every one goes with every other.' if together else _table(found)}\n")
    return "\n".join(parts).rstrip("\n")


def _table(found: list[Pair]) -> str:
    reasons = list(dict.fromkeys(pair.reason for pair in found if pair.reason is not None))
    columns = list(dict.fromkeys(pair.second for pair in found))
    cells = {
        (pair.first, pair.second): "·" if pair.reason is None else str(1 + reasons.index(pair.reason)) for pair in found
    }
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for row in dict.fromkeys(pair.first for pair in found):
        lines.append(f"| {row} | {' | '.join(cells[row, column] for column in columns)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join([*lines, "", *notes])
