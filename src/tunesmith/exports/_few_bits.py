"""Merges of an adapter that was trained beside a base model held in few bits: into what, and how close each is."""

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import RunError
from tunesmith.exports._check import FEW_BITS, judged, watched
from tunesmith.exports._signature import Digests, sign
from tunesmith.seams import Report

if TYPE_CHECKING:
    from tunesmith.exports._opened import Opened
    from tunesmith.exports.merged import Merged

WORDS = {"held": "the rounded numbers that it was trained beside", "stored": "the numbers as they are stored"}


def write(export: "Merged", opened: "Opened", place: str, folder: Path, out: Path) -> Report:
    """Write the merge that `export.into` says, or both and keep the closer. Raises RunError where it is not close."""
    from tunesmith.exports import _stream

    plan = _stream.plan(place, export.dtype, export.adapters)
    if plan is None and export.into == "stored":
        raise RunError(f"export.into=stored: the base model of {place} is stored in few bits itself: use into=held")
    kinds = (export.into,) if export.into != "closer" else ("held",) if plan is None else ("held", "stored")
    made: dict[str, tuple[Report, Digests]] = {}
    for kind in kinds:
        part = folder / f".{kind}"
        part.mkdir()
        export.beside(opened, part)
        if kind == "stored":
            assert plan is not None, "refused before"
            sealed = export.streamed(opened, plan, part)
        else:
            sealed = export.whole(opened, place, part)
        with watched(part, sealed):
            share = FEW_BITS if kind == "stored" else None
            made[kind] = opened.closed()(part, out, "auto", share), sealed
    best = min(made, key=lambda kind: made[kind][0].divergence)
    report, sealed = made[best]
    judged(report)
    for path in sorted((folder / f".{best}").iterdir()):
        path.rename(folder / path.name)
    for kind in made:
        shutil.rmtree(folder / f".{kind}")
    return sign(folder, export, sealed, dataclasses.replace(report, notes=_notes(made, best)))


def _notes(made: dict[str, tuple[Report, Digests]], best: str) -> tuple[str, ...]:
    """What was merged into what, and how close the merges are to the run."""
    first = f"merged into {WORDS[best]} (into={best})"
    if len(made) == 1:
        return (first,)
    said = [
        f"{report.divergence:.2g} nats and {report.largest_logit_difference:.3g} of a logit from the run into={kind}"
        for kind, (report, _) in made.items()
    ]
    return (f"{first}, the closer of two", *said)
