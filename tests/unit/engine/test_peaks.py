"""The peak of a device: by its name, or the best of what is measured."""

import pytest
import torch

from tunesmith.defaults import Device
from tunesmith.engine import peaks


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181.05e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("AMD Instinct MI300X", 1307.4e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("Tesla T4", None),  # of bfloat16 it has nothing
    ],
)
def test_a_device_by_its_name(name, flops):
    assert peaks.listed(Device("cuda", name, True), torch.bfloat16) == flops


def test_the_table_is_of_half_precision_on_gpus():
    assert peaks.listed(Device("cuda", "Tesla T4", False), torch.float16) == 65e12
    assert peaks.listed(Device("cuda", "NVIDIA H200", True), torch.float32) is None
    assert peaks.listed(Device("cpu", "NVIDIA H200", True), torch.bfloat16) is None


def test_the_best_repeat_of_the_best_size_is_measured(monkeypatch):
    clock, taken = [0.0], {10: [9, 3, 2, 4], 20: [9, 8, 8, 8]}

    def product(kind, dtype, size):
        def run():
            clock[0] += taken[size].pop(0)

        return run

    monkeypatch.setattr(peaks, "SIZES", {"cpu": (10, 20)})
    monkeypatch.setattr(peaks, "_product", product)
    monkeypatch.setattr(peaks.time, "perf_counter", lambda: clock[0])
    assert peaks.measured(Device("cpu", "", True), torch.float32) == 2 * 20**3 / 8
    assert taken == {10: [], 20: []}


def test_a_product_is_one(monkeypatch):
    monkeypatch.setattr(peaks, "SIZES", {"cpu": (64,)})
    monkeypatch.setattr(peaks, "MEASURED_SECONDS", 0.01)
    assert 1e6 < peaks.measured(Device("cpu", "", True), torch.float32) < 1e14
