"""What a run was: recipe, derived values, versions, git state, data, device, results."""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith import __version__, atomic
from tunesmith.defaults import Device, Resolved
from tunesmith.engine import ranks
from tunesmith.errors import RunError
from tunesmith.recipe import Recipe
from tunesmith.way_on import RECORD

FILE = RECORD
SAYS_NOTHING = {  # of a config, about numbers
    "_name_or_path", "name_or_path", "base_model_name_or_path", "transformers_version", "peft_version", "architectures",
    "use_cache", "inference_mode", "revision",
}  # fmt: skip
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "datasets", "safetensors", "numpy")


def begin(
    resolved: Resolved, device: Device, data: dict[str, Any], model: str | None, given: list[str]
) -> dict[str, Any]:
    """The record of a run that starts now; `model` is a fingerprint, `given` what a script brought."""
    return {
        "status": "running",
        "recipe": resolved.recipe.model_dump(mode="json"),
        "derived": resolved.derived,
        "seeds": {"train.seed": resolved.recipe.train.seed, "data.seed": resolved.recipe.data.seed},
        "data": data,
        "model": model,
        "given": given,
        "num_processes": ranks.number(),
        "job": ranks.job(),
        "device": {"type": device.type, "name": device.name},
        "versions": versions(),
        "git": git_state(),
        "command": sys.argv,
        "working_folder": str(Path.cwd()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed": [],
    }


def changes(past: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    """What a recipe says otherwise than the one that a record is of, as a person may have changed it: a line each."""
    began, now = (dict(_options(tree)) for tree in (past["recipe"], recipe.model_dump(mode="json")))
    for name in sorted({*began, *now} - {*past["derived"]}):
        if name in began and began[name] != now.get(name):
            yield f"{name} is {now.get(name)!r} now, and the run began with {began[name]!r}"


def _options(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _options(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of what it stands on."""
    own = {"python": platform.python_version(), "tunesmith": __version__}
    return own | {name: metadata.version(name) for name in PACKAGES}


def model_fingerprint(model: Any) -> str:
    """What tells a loaded model from others: every byte of its weights, and its config and its adapters'."""
    import torch

    from tunesmith.engine import quantised

    configs = [("", model.config), *getattr(model, "peft_config", {}).items()]
    said = [(name, {k: v for k, v in config.to_dict().items() if k not in SAYS_NOTHING}) for name, config in configs]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=_plain).encode())
    with torch.no_grad():
        own = (part for name, one in model.named_parameters() for part in quantised.plain_parts(name, one))
        for name, tensor in (*own, *quantised.scales_of(model)):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def text(record: dict[str, Any]) -> bytes:
    """A record as the content of its file."""
    return json.dumps(record, indent=2, ensure_ascii=False).encode()


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a run, whole or not at all."""
    atomic.write(folder / FILE, text(record))


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
