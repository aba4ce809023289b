"""What a plan says of fsdp, ZeRO and layers in parts is what each of two processes (gloo) holds."""

import sys
from importlib.util import find_spec

import pytest

from invariants import shared_peaks
from tunesmith.defaults import Device, resolve
from tunesmith.planner import shapes, spread
from tunesmith.planner.layout import Layout
from tunesmith.recipe import Recipe

CPU = Device("cpu", "CPU", False)
LIKE = {"num_hidden_layers": 4}
SIZES = {  # tokens of a row, and a shape: where the peak is at the head, and where it is in a layer's backward pass
    "head": (256, {"hidden_size": 128, "intermediate_size": 352, "vocab_size": 4000}),
    "layer": (64, {"hidden_size": 256, "intermediate_size": 704, "vocab_size": 500, "tie_word_embeddings": False}),
}
HALF, AGAIN = {"bf16": True}, {"activation_checkpointing": True}
FREEZE = {"type": "freeze", "num_layers": 2}
SHARED = {
    "fsdp": ({"strategy": "fsdp"}, Layout("fsdp", fsdp=2)),
    "tensor": ({"tensor": 2}, Layout("ddp", tensor=2)),
}
SHARED |= {
    f"zero-{stage}{'-host' if away else ''}": (
        {"strategy": "deepspeed", "zero_stage": stage, "offload": away},
        Layout("deepspeed", replicate=2, zero_stage=stage, offload=away),
    )
    for stage, away in ((1, None), (2, None), (2, "cpu"), (3, None), (3, "cpu"))
}
CELLS = {
    "full": ("layer", "full", "float32", {}),
    "full-bf16": ("head", "full", "float32", HALF),
    "full-bf16-again": ("layer", "full", "float32", HALF | AGAIN),
    "freeze-bf16-again": ("layer", FREEZE, "float32", HALF | AGAIN),
    "lora-again": ("layer", "lora", "bfloat16", AGAIN),
    "full zero-1": ("layer", "full", "float32", {}),
    "full zero-2": ("layer", "full", "float32", {}),
    "full zero-2-host": ("layer", "full", "float32", {}),
    "full-bf16-again zero-3": ("head", "full", "float32", HALF | AGAIN),
    "full-again zero-3": ("layer", "full", "float32", AGAIN),
    "full zero-3-host": ("layer", "full", "float32", {}),
    "lora-again zero-3": ("head", "lora", "bfloat16", AGAIN),
    "full tensor": ("layer", "full", "float32", {}),
    "full-bf16-again tensor": ("head", "full", "float32", HALF | AGAIN),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_a_peak_of_two_processes_is_as_planned(name, tmp_path, monkeypatch):
    """On a CPU the host's memory is the device's, so what is offloaded is measured with it."""
    import transformers

    if "zero" in name and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    monkeypatch.syspath_prepend(str(shared_peaks.BENCHMARKS))
    import memory_peak

    where, adapter, dtype, train = CELLS[name]
    parallel, layout = SHARED[name.partition(" ")[2] or "fsdp"]
    tokens, sizes = SIZES[where]
    recipe = Recipe(
        model={"path": "builtin:tiny", "dtype": dtype},  # whose config is replaced
        data={"train": "builtin:identity", "max_tokens": 200},
        adapter=adapter,
        parallel=parallel,
        train={"device": "cpu", "row_tokens": tokens, "compile": False} | train,
    )
    recipe = resolve(recipe, CPU).recipe
    config = transformers.Qwen2Config(**memory_peak.SHAPE | LIKE | sizes)
    for module in ("memory_peak", "measure"):
        sys.modules.pop(module, None)
    found = spread.share(recipe, shapes.shape_of(recipe, config), CPU, layout)
    measured = shared_peaks.of_each(2, recipe, config, tmp_path)
    near = 0.1 if layout.zero_stage else 0.25  # what is gathered and sent overlaps by chance
    assert found.peak.total + found.host == pytest.approx(max(measured), rel=near)
    if layout.strategy == "fsdp":
        assert where in found.peak.name
