"""The most that a device can do: its dense peak from a table, or the best matrix product measured on it now."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tunesmith.defaults import Device

HALF = (torch.bfloat16, torch.float16)
MEASURED_SECONDS = 0.4  # of each shape
SIZES = {"cpu": (1024, 2048)}  # rows, columns and depth of square products
SIZES_OF_OTHERS = (4096, 8192, 12288)


@dataclass(frozen=True)
class _Listed:
    """A device's dense peak, without sparsity, by a pattern of the name that its driver gives it."""

    pattern: str
    flops: float
    dtypes: tuple[torch.dtype, ...] = HALF


# From the makers' data sheets; where they state the peak with sparsity, half of it. The first that fits is taken.
TABLE = (
    _Listed("B200", 2250e12),  # NVIDIA Blackwell datasheet: 4.5 PFLOPS with sparsity
    _Listed("GH200", 989e12),  # NVIDIA GH200 datasheet: 1,979 TFLOPS with sparsity
    _Listed("H200 NVL", 835e12),  # NVIDIA H200 datasheet: 1,671 with sparsity
    _Listed("H200", 989e12),  # NVIDIA H200 datasheet: 1,979 with sparsity
    _Listed("H100 PCIe", 756e12),  # NVIDIA H100 datasheet, 2022: 1,513 with sparsity
    _Listed("H100 NVL", 835e12),  # NVIDIA H100 datasheet, 2024: 1,671 with sparsity
    _Listed("H100 80GB HBM3", 989e12),  # NVIDIA H100 datasheet, SXM: 1,979 with sparsity
    _Listed("A100", 312e12),  # NVIDIA A100 datasheet
    _Listed("L40S", 362.05e12),  # NVIDIA L40S datasheet: 362.05, and 733 with sparsity
    _Listed("L40", 181.05e12),  # NVIDIA L40 datasheet: 181.05, and 362.1 with sparsity
    _Listed("A40", 149.7e12),  # NVIDIA A40 datasheet: 149.7, and 299.4 with sparsity
    _Listed("A10", 125e12),  # NVIDIA A10 datasheet: 125, and 250 with sparsity
    _Listed("L4", 121e12),  # NVIDIA L4 datasheet: 242 with sparsity
    _Listed("T4", 65e12, (torch.float16,)),  # NVIDIA T4 datasheet; it has no bfloat16
    _Listed("V100-SXM2", 125e12, (torch.float16,)),  # NVIDIA V100 datasheet; it has no bfloat16
    _Listed("RTX 4090$", 165.2e12),  # NVIDIA Ada whitepaper: summed in float32
    _Listed("RTX 3090$", 71e12),  # NVIDIA GA102 whitepaper: summed in float32
    _Listed("MI300X", 1307.4e12),  # AMD Instinct MI300X datasheet
)


def listed(device: Device, dtype: torch.dtype) -> float | None:
    """The device's peak for products in `dtype` by the table, in operations a second; None when it is not there."""
    if device.type != "cuda" or "MIG" in device.name:  # a slice of a device has a part of its peak
        return None
    found = next((row for row in TABLE if re.search(rf"\b{row.pattern}(?!\w)", device.name)), None)
    return found.flops if found and dtype in found.dtypes else None


def measured(device: Device, dtype: torch.dtype) -> float:
    """The operations a second of the fastest matrix product of several sizes, each repeated, in `dtype`."""
    sizes = SIZES.get(device.type, SIZES_OF_OTHERS)
    return max(2 * size**3 / _fastest(_product(device.type, dtype, size), device.type) for size in sizes)


def _product(kind: str, dtype: torch.dtype, size: int) -> Callable[[], None]:
    left, right = (torch.randn(size, size, dtype=dtype, device=kind) for _ in range(2))
    out = torch.empty_like(left)

    def run() -> None:
        torch.mm(left, right, out=out)
        if kind != "cpu":
            torch.accelerator.synchronize()

    return run


def _fastest(run: Callable[[], None], kind: str) -> float:
    """The seconds of the fastest of at least three repeats, after one that is not counted."""
    run()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < MEASURED_SECONDS:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)
