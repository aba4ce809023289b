"""Which device a run uses, and what it can do."""

import platform
from pathlib import Path

import torch

from tunesmith.defaults import Device
from tunesmith.errors import RecipeError

COUNTED = ("cuda", "xpu")  # devices whose allocator counts what it gave
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container on Linux


def present() -> list[str]:
    """The device types of this machine, best first."""
    found = []
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.xpu.is_available():
        found.append("xpu")
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def choose(word: str) -> Device:
    """The device that `train.device` says. Raises RecipeError when this machine has none."""
    available = present()
    kind = available[0] if word == "auto" else word
    if kind not in available:
        raise RecipeError(f"train.device: there is no {kind} here. This machine has: {', '.join(available)}")
    if kind == "cuda":
        return Device(kind, torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "xpu":
        return Device(kind, torch.xpu.get_device_name(), True)
    if kind == "mps":
        return Device(kind, f"Apple {platform.machine()}", False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    has_bf16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return Device(kind, f"{platform.machine()}, {torch.get_num_threads()} threads", has_bf16)


def compute_dtype(states: torch.Tensor) -> torch.dtype:
    """The dtype that matrix products on `states` run in: autocast's where it is on, else that of `states`."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def peak_memory_bytes(kind: str) -> int:
    """The most memory this process has held: allocated on the device, or resident on a CPU."""
    if kind == "cuda":
        return torch.cuda.max_memory_allocated()
    if kind == "xpu":
        return torch.xpu.max_memory_allocated()
    if kind == "mps":
        return torch.mps.driver_allocated_memory()
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_memory_bytes(kind: str) -> int:
    """What this process holds now: allocated on the device, or resident on a CPU."""
    if kind in COUNTED:
        return torch.accelerator.memory_allocated()
    if kind == "mps":
        return torch.mps.current_allocated_memory()
    import psutil

    return psutil.Process().memory_info().rss


def free_memory_bytes(kind: str) -> int:
    """What this process may still take: of the device, or of the machine or the container on a CPU."""
    if kind in COUNTED:
        kept = torch.accelerator.memory_reserved() - torch.accelerator.memory_allocated()
        return torch.accelerator.get_memory_info()[0] + kept
    if kind == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    import psutil

    free = psutil.virtual_memory().available
    limit = LIMIT.read_text().strip() if LIMIT.is_file() else "max"
    return free if limit == "max" else min(free, int(limit) - held_memory_bytes(kind))
