"""How a run that was stopped goes on: by the command, or by a script that brings again what it brought."""

import json
import shlex
from pathlib import Path

RECORD = "record.json"


def way_on(folder: Path | str) -> str:
    """The words for it: a shell's, or Python's where a script began the run with objects of its own."""
    try:
        given = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8")).get("given")
    except (OSError, ValueError):  # whoever follows the words is told what is wrong with the record
        given = None
    if not given:
        return f"tunesmith train {shlex.quote(str(folder))}"
    return f"tunesmith.resume({str(folder)!r}, {', '.join(f'{name}=...' for name in given)})"
