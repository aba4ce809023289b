"""Files that grow by a line with each answer, so that a killed program goes on where it was."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError


class Journal:
    """A file of JSON lines. Opening it cuts off a last line without an end, which a killed program leaves.

    Raises:
        RunError: a line is no JSON object, or has not the key that every entry has.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        path.touch()
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with path.open("r+b") as file:
                file.truncate(len(whole))
        self.entries: list[dict[str, Any]] = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RunError(
                    f"{path}:{number} is not valid JSON ({error}): take the line and those below out"
                ) from None
            if not isinstance(entry, dict) or key not in entry:
                raise RunError(f"{path}:{number} is no object with {key!r}: take the line and those below out")
            self.entries.append(entry)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one more line, and have it on the disk."""
        with self.path.open("ab") as file:
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries.append(dict(entry))
