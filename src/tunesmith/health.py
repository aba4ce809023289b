"""What works on this machine, and the command that gives what is missing."""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from tunesmith import __version__, extras

EVERY = "every run"
USES = {  # what a needed package gives, when it is not every run that stops without it
    "datasets": "hub datasets, parquet files",
    "matplotlib": "loss picture",
    "openpyxl": "xlsx files",
    "psutil": "this report, peak memory",
    "rich": "live progress, coloured previews",
}


def examine() -> dict[str, Any]:
    """Versions, device, resources and features, as JSON can hold them. Imports torch."""
    needed = [_needed(line) for line in metadata.requires("tunesmith") or () if "extra ==" not in line]
    device = _device()
    return {
        "versions": {"tunesmith": __version__, "python": platform.python_version()}
        | {one["package"]: one["version"] for one in needed},
        "platform": platform.platform(),
        "device": device,
        "cores": os.cpu_count(),
        "memory_free_bytes": _free_memory_bytes(),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "features": [*sorted(needed, key=lambda one: one["feature"] != EVERY), _gpu(device), *_wished()],
    }


def healthy(facts: dict[str, Any]) -> bool:
    """Whether everything that a run needs is there."""
    return facts["device"]["type"] is not None and all(one["present"] for one in facts["features"] if one["needed"])


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """The facts as a person reads them."""
    device = facts["device"]
    versions = facts["versions"]
    yield f"tunesmith {versions['tunesmith']}, Python {versions['python']}, {facts['platform']}"
    yield f"device    {device['type'] or 'none'} ({device['name']})"
    yield f"cores     {facts['cores']}"
    yield f"memory    {(facts['memory_free_bytes'] or 0) / 1e9:.1f} GB free"
    yield f"disk      {facts['disk_free_bytes'] / 1e9:.1f} GB free in this folder"
    yield ""
    rows = [(one["feature"], one["package"], one["version"] or "missing") for one in facts["features"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, one in zip(rows, facts["features"], strict=True):
        cells = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        yield (cells if one["present"] else f"{cells}  {one['command'] or '(no driver)'}").rstrip()


def version(package: str) -> str | None:
    """The installed version of a package; None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _needed(requirement: str) -> dict[str, Any]:
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    return _feature(USES.get(name, EVERY), name, version(name), f"pip install '{requirement}'", needed=True)


def _wished() -> Iterator[dict[str, Any]]:
    """What a person may want beside it."""
    for extra, packages in extras.EXTRAS.items():
        for package, use in packages.items():
            yield _feature(use, package, version(package), extras.command(extra))
    for package in extras.TRACKERS:
        yield _feature(f"report_to: {package}", package, version(package), f"pip install {package}")


def _feature(name: str, package: str, found: str | None, command: str | None, needed: bool = False) -> dict[str, Any]:
    return {
        "feature": name,
        "package": package,
        "needed": needed,
        "present": found is not None,
        "version": found,
        "command": command,
    }


def _device() -> dict[str, Any]:
    """The device that a run would choose, or why there is none."""
    try:
        from tunesmith.engine.device import choose

        device = choose("auto")
    except (ImportError, OSError) as error:  # torch is missing, or a library that it needs
        return {"type": None, "name": f"torch cannot be imported: {error}", "has_bf16": False}
    return {"type": device.type, "name": device.name, "has_bf16": device.has_bf16}


def _gpu(device: dict[str, Any]) -> dict[str, Any]:
    """Whether runs use a GPU. With a driver and no GPU to be seen, the installed torch is one for CPUs."""
    if device["type"] not in (None, "cpu"):
        return _feature("training on a GPU", "torch", device["name"], None)
    command = "pip install --force-reinstall torch" if shutil.which("nvidia-smi") else None
    return _feature("training on a GPU", "torch", None, command)


def _free_memory_bytes() -> int | None:
    if version("psutil") is None:
        return None
    import psutil

    return psutil.virtual_memory().available
