"""What an export says of itself: what made it, what its files are, and how it was found to compare with its run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.component import spell
from tunesmith.errors import RunError
from tunesmith.seams import Export
from tunesmith.types import Report

FILE = "export.json"

Digests = dict[str, tuple[int, str]]  # size and SHA-256 of each file, by its name


def seal(folder: Path, known: Mapping[str, str] | None = None) -> Digests:
    """What the files of a folder are. `known` are digests that were made as files were written."""
    known = known or {}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    names = [path.relative_to(folder).as_posix() for path in files]
    return {
        name: (path.stat().st_size, known[name] if name in known else _digest(path))
        for name, path in zip(names, files, strict=True)
    }


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path, sealed: Digests) -> str | None:
    """Which file is not what was written, in words; None where all are."""
    for name, (size, digest) in sealed.items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if path.stat().st_size != size or _digest(path) != digest:
            return f"its file {name} is damaged: it is not what was written"
    return None


def sign(folder: Path, export: Export, sealed: Digests, report: Report) -> Report:
    """Write what an export is, and the report, into it."""
    found = asdict(report)
    del found["path"]
    said = {
        "made_by": f"tunesmith {__version__}",
        "export": spell(export, only_set=True),
        "files": sealed,
        "verified": found,
    }
    (folder / FILE).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return report


def signed(folder: Path) -> tuple[dict[str, Any], Digests]:
    """What made an export (its type and options), and what its files were. Raises RunError where it does not say."""
    said = facts(folder)
    return said["export"], {name: (size, digest) for name, (size, digest) in said["files"].items()}


def facts(folder: Path) -> dict[str, Any]:
    """All that an export says of itself. Raises RunError where it says nothing."""
    try:
        said: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        said["export"], said["files"], said["verified"]  # which it has
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{folder} has no readable {FILE}, which every export has: make it again") from error
    return said
