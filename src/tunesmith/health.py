"""What works on this machine, and the command that gives what is missing."""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from tunesmith import __version__
from tunesmith.errors import TunesmithError

FEATURES = {  # what is not needed by every run: its package, and the command that installs it
    "report_to: tensorboard": ("tensorboard", "pip install tensorboard"),
    "report_to: wandb": ("wandb", "pip install wandb"),
    "report_to: mlflow": ("mlflow", "pip install mlflow"),
    "the test suite": ("pytest", "pip install 'tunesmith[test]'"),
}
GIGABYTE = 1e9


def examine() -> dict[str, Any]:
    """Versions, device, resources and features, as JSON can hold them. Imports torch and nothing else heavy."""
    import psutil

    needed = [_needed(line) for line in metadata.requires("tunesmith") or () if "extra ==" not in line]
    return {
        "versions": {"tunesmith": __version__, "python": platform.python_version()}
        | {one["feature"]: one["version"] for one in needed},
        "platform": platform.platform(),
        "device": _device(),
        "cores": len(psutil.Process().cpu_affinity()) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_free_bytes": psutil.virtual_memory().available,
        "disk_free_bytes": shutil.disk_usage(".").free,
        "features": [*needed, _gpu(), *(_optional(name, *how) for name, how in FEATURES.items())],
    }


def version(package: str) -> str | None:
    """The installed version of a package; None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _needed(requirement: str) -> dict[str, Any]:
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    return {
        "feature": name,
        "needed": True,
        "present": version(name) is not None,
        "version": version(name),
        "command": f"pip install '{requirement}'",
    }


def _optional(feature: str, package: str, command: str) -> dict[str, Any]:
    present = version(package) is not None
    return {"feature": feature, "needed": False, "present": present, "version": version(package), "command": command}


def _device() -> dict[str, Any]:
    """The device that a run would choose, or why there is none."""
    try:
        from tunesmith.engine.device import choose

        device = choose("auto")
    except (ImportError, OSError) as error:  # torch is missing, or its libraries cannot be loaded
        return {"type": None, "name": f"torch cannot be imported: {error}", "has_bf16": False}
    return {"type": device.type, "name": device.name, "has_bf16": device.has_bf16}


def _gpu() -> dict[str, Any]:
    kind = _device()["type"]
    driver = shutil.which("nvidia-smi") is not None
    ...
