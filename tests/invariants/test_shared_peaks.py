"""What a plan says of fsdp is what each of two processes (gloo) holds whose model is shared out."""

import sys

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
CELLS = {
    "full": ("layer", "full", "float32", {}),
    "full-bf16": ("head", "full", "float32", HALF),
    "full-bf16-again": ("layer", "full", "float32", HALF | AGAIN),
    "freeze-bf16-again": ("layer", FREEZE, "float32", HALF | AGAIN),
    "lora-again": ("layer", "lora", "bfloat16", AGAIN),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_a_peak_of_two_processes_is_as_planned(name, tmp_path, monkeypatch):
    import transformers

    monkeypatch.syspath_prepend(str(shared_peaks.BENCHMARKS))
    import memory_peak

    where, adapter, dtype, train = CELLS[name]
    tokens, sizes = SIZES[where]
    recipe = Recipe(
        model={"path": "builtin:tiny", "dtype": dtype},  # whose config is replaced
        data={"train": "builtin:identity", "max_tokens": 200},
        adapter=adapter,
        parallel={"strategy": "fsdp"},
        train={"device": "cpu", "row_tokens": tokens, "compile": False} | train,
    )
    recipe = resolve(recipe, CPU).recipe
    config = transformers.Qwen2Config(**memory_peak.SHAPE | LIKE | sizes)
    for module in ("memory_peak", "measure"):
        sys.modules.pop(module, None)
    planned = spread.share(recipe, shapes.shape_of(recipe, config), CPU, Layout("fsdp", fsdp=2)).peak
    measured = shared_peaks.of_each(2, recipe, config, tmp_path)
    assert planned.total == pytest.approx(max(measured), rel=0.25)  # what is gathered and sent overlaps by chance
    assert where in planned.name
