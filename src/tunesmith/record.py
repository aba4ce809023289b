"""What a run was: recipe, derived values, versions, git state, data, device, results."""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.defaults import Device, Resolved
from tunesmith.engine.metrics import write_whole
from tunesmith.errors import RunError

FILE = "record.json"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "datasets", "safetensors", "numpy")


def begin(resolved: Resolved, device: Device, data: dict[str, Any], command: list[str] | None = None) -> dict[str, Any]:
    """The record of a run that starts now."""
    return {
        "status": "running",
        "recipe": resolved.recipe.model_dump(mode="json"),
        "derived": resolved.derived,
        "seeds": {"train.seed": resolved.recipe.train.seed, "data.seed": resolved.recipe.data.seed},
        "data": data,
        "device": {"type": device.type, "name": device.name},
        "versions": {"python": platform.python_version(), "tunesmith": __version__}
        | {name: metadata.version(name) for name in PACKAGES},
        "git": git_state(),
        "command": command if command is not None else sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed": [],
    }


def text(record: dict[str, Any]) -> bytes:
    """A record as the content of its file."""
    return json.dumps(record, indent=2, ensure_ascii=False).encode()


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a run, whole or not at all."""
    write_whole(folder / FILE, text(record))


def read(folder: Path) -> dict[str, Any]:
    """The record of a run folder. Raises RunError when there is none."""
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} has no readable {FILE}, so it is no run that can go on: {error}") from error


def git_state() -> dict[str, Any] | None:
    """The commit of the working folder and whether it has changes; None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(changes.stdout.strip())}
