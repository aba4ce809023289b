"""A base that was held in few bits has two merges: both are measured, and the nearer one is named."""

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.engine import quantised
from tunesmith.engine.model import load_model
from tunesmith.exports.merged import Merged
from tunesmith.recipe import Model
from unit.exports.test_exports import make_run

pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
NAME = "model.layers.1.mlp.up_proj"


@pytest.fixture
def run(tmp_path):
    """A run as QLoRA leaves it."""
    run = make_run(tmp_path, "qwen2", prompts=["What is two and three?"])
    held = load_model(Model(path=str(tmp_path / "base"), quantization={"type": "bnb_4bit"}), "cpu")
    quantised.save_config(held, run / "final")
    return run


def update(run):
    adapter = load_file(run / "final" / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{NAME}.lora_{side}.weight"] for side in "AB")
    return (8 / 4) * (b @ a)  # lora_alpha / r


@pytest.mark.parametrize("into", ["rounded", "stored"])
def test_both_are_measured_and_the_one_asked_for_is_written(into, run, tmp_path):
    out = tmp_path / "out"
    report = Merged(into=into).write(run, out)
    base = load_file(tmp_path / "base" / "model.safetensors")[f"{NAME}.weight"]
    left = load_file(out / "model.safetensors")[f"{NAME}.weight"] - update(run)
    assert torch.allclose(left, base, atol=1e-6) is (into == "stored")
    levels = [len(block.unique()) for block in left.mul(1e5).round().reshape(-1, 64)]
    assert max(levels) <= 17 or into == "stored"  # 16 numbers of a block, but for the last digit
    lines = report.notes
    assert [line.split(":")[0] for line in lines] == [
        "into the rounded numbers", "into the stored numbers", "nearer to the run"
    ]  # fmt: skip
    assert lines[2] == "nearer to the run: into=rounded"
    mine = {"rounded": lines[0], "stored": lines[1]}[into]
    assert f"difference {report.largest_logit_difference:.3g}, mean divergence {report.divergence:.2g}" in mine
    assert json.loads((out / "export.json").read_text())["verified"]["notes"] == list(lines)
    assert Merged(into=into).check(run, out) == report


def test_a_base_that_was_plain_has_one(tmp_path):
    run = make_run(tmp_path, prompts=["What is two and three?"])
    assert Merged().write(run, tmp_path / "out").notes == ()
