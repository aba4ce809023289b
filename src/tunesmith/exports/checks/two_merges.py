"""The two merges of an adapter that was trained beside a base held in few bits: which answers more as the run does.

An update was trained beside rounded numbers. Added to these, in full width, it is what the run was; added to the
stored numbers it is beside a base that it never saw, and what the rounding cost is undone and what the update corrected
of it is done twice.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.engine.quantised import CONFIG
from tunesmith.exports.checks.compare import Reference, answers
from tunesmith.exports.checks.costs import BNB as COSTS
from tunesmith.generate.load import load
from tunesmith.recipe_train import DeviceName
from tunesmith.types import Report

TWO = CONFIG  # which lies beside an adapter whose base was rounded when it was loaded


def share(place: str) -> float:
    """Of the largest logit: what the stored numbers of a base may differ by from those that the run had."""
    said: dict[str, Any] = json.loads((Path(place) / CONFIG).read_text(encoding="utf-8"))
    return COSTS[8] if said.get("load_in_8bit") or said["quant_method"] == "torchao" else COSTS[4]


def both(report: Report, run: Reference, place: str, device: DeviceName, into: str, more: Sequence[str]) -> Report:
    """The report of one merge, with what the other would be, and which is nearer to the run."""
    if more:
        return replace(report, notes=(*report.notes, "with more adapters on top, the other merge was not measured"))
    other = "stored" if into == "rounded" else "rounded"
    model: Any = load(place, device, widened=other == "rounded", stored=other == "stored")[0]
    found = {into: report, other: answers(model, run, report.path, share(place))}
    nearer = min(found, key=lambda name: (found[name].divergence, found[name].largest_logit_difference))
    lines = [
        f"into the {name} numbers: largest logit difference {found[name].largest_logit_difference:.3g}, mean "
        f"divergence {found[name].divergence:.2g} nats"
        for name in ("rounded", "stored")
    ]
    return replace(report, notes=(*report.notes, *lines, f"nearer to the run: into={nearer}"))
