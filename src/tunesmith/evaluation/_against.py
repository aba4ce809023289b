"""A tuned model beside its base: whether tuning gave what prompting the base would not have given.

The base is asked without examples and, where a task shows some (`num_shots`), with them; so is the tuned model. What is
compared is the best of the one with the best of the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.evaluation._kept import Found
from tunesmith.evaluation._shares import by_chance
from tunesmith.seams import Task

SHOTS = "num_shots"
RARE = 0.05  # chance below which a difference is taken for one


@dataclass(frozen=True)
class Side:
    """What a task found of one of the two models, with so many examples; None where it shows none."""

    model: str
    tuned: bool
    shots: int | None
    found: Found

    @property
    def metric(self) -> str:
        """The number that is compared."""
        return next(iter(self.found.result["metrics"]))

    @property
    def value(self) -> float:
        """That number."""
        return float(self.found.result["metrics"][self.metric])

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its 95 % interval, where there is one."""
        found = self.found.result["intervals"].get(self.metric)
        return None if found is None else (found[0], found[1])

    @property
    def said(self) -> str:
        """It in words."""
        return f"{self.value:.4g}" + ("" if self.shots is None else f" ({self.shots} shots)")


def variants(task: Task) -> list[Task]:
    """The task without examples and, where it shows some, as it is."""
    return [task.model_copy(update={SHOTS: 0}), task] if shots_of(task) else [task]


def shots_of(task: Task) -> int | None:
    """How many examples a task shows; None where it has no such option."""
    return task.model_dump().get(SHOTS)


def compared(sides: Sequence[Side], lower_is_better: bool) -> dict[str, Any]:
    """A row for each side, and in words what came of it."""

    def best(tuned: bool) -> Side:
        own = [one for one in sides if one.tuned == tuned]
        return min(own, key=lambda one: one.value if lower_is_better else -one.value)

    ours, theirs = best(True), best(False)
    rows = [_row(one, ours) for one in sides]
    return {"metric": ours.metric, "rows": rows, "verdict": _verdict(ours, theirs, lower_is_better)}


def _row(one: Side, ours: Side) -> dict[str, Any]:
    low, high = one.interval or ("", "")
    row = {"model": one.model, "shots": "" if one.shots is None else one.shots, one.metric: one.value}
    row |= {"low": low, "high": high, "tuned - this": "", "intervals": "", "by chance": ""}
    if not one.tuned:
        row["tuned - this"] = ours.value - one.value
        if ours.interval is not None and one.interval is not None:
            row["intervals"] = "overlap" if overlap(ours.interval, one.interval) else "apart"
        chance = chance_of(ours.found.items, one.found.items)
        row["by chance"] = "" if chance is None else chance
    return row


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two intervals have a point in common."""
    return one[0] <= other[1] and other[0] <= one[1]


def chance_of(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> float | None:
    """How likely equal models differ so much on the same questions; None where nothing is right or wrong."""
    if not ours or len(ours) != len(theirs) or not all("right" in one for one in (*ours, *theirs)):
        return None
    pairs = [(bool(one["right"]), bool(other["right"])) for one, other in zip(ours, theirs, strict=True)]
    return by_chance(pairs.count((True, False)), pairs.count((False, True)))


def _verdict(ours: Side, theirs: Side, lower_is_better: bool) -> str:
    gained = ours.value - theirs.value
    chance = chance_of(ours.found.items, theirs.found.items)
    apart = ours.interval is not None and theirs.interval is not None and not overlap(ours.interval, theirs.interval)
    how = f"tuned {ours.said}, the best of prompting the base {theirs.said}: {gained:+.4g}"
    if chance is not None:
        how += f", which equal models differ by in {chance:.1%} of cases"
    elif ours.interval is None or theirs.interval is None:
        return f"{how}; how sure that is, is not known"
    else:
        how += f", the intervals {'are apart' if apart else 'overlap'}"
    if not (chance < RARE if chance is not None else apart):
        return f"{how}: no more than chance may be. Prompting the base may do as well"
    return f"{how}: tuning {'helped' if (gained < 0) == lower_is_better else 'hurt'}"
