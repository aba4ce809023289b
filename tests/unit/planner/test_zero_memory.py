"""What a plan says that DeepSpeed's ZeRO holds, by hand; its peaks are measured in tests/invariants."""

from dataclasses import replace

from tunesmith.defaults import Device
from tunesmith.planner import spread
from tunesmith.planner.layout import Layout

CUDA = Device("cuda", "a CUDA device", True)


def last(recipe, shape, layout):
    """The parts at the update."""
    return spread.share(recipe, shape, CUDA, layout).moments[-1].parts


def test_what_zero_divides_by_hand(told):
    """N float32 weights by 4: a copy of a quarter, its state, its gradients again as one; the peak is measured too.

    Whole gradients of stage 1 and of what is in no layer: tests/invariants/test_shared_peaks.py.
    """
    recipe, shape = told()
    numel, words = sum(one.numel for one in shape.weights), 400 * 32
    count = 4 * len(shape.weights)  # a number of steps for each weight, in float32
    at = {stage: last(recipe, shape, Layout("deepspeed", replicate=4, zero_stage=stage)) for stage in (1, 2, 3)}
    assert [at[stage]["weights"] - shape.buffer_bytes for stage in at] == [4 * numel, 4 * numel, numel]
    assert {one["float32 copies"] for one in at.values()} == {numel}
    assert {one["optimizer state"] for one in at.values()} == {(8 * numel + count) // 4}
    assert {one["gradients"] for one in at.values()} == {2 * numel}
    assert at[3]["gathered"] == 4 * (words + 5 * 32) and "gathered" not in at[2]  # and norms, which are so small
    first = spread.share(recipe, shape, CUDA, Layout("deepspeed", replicate=4, zero_stage=3)).moments[0].parts
    assert first["gathered"] == 4 * numel and first["gradients"] == numel  # so small that no layer is dropped


def test_what_is_offloaded_lies_on_the_host(told):
    recipe, shape = told()
    numel, count = sum(one.numel for one in shape.weights), 4 * len(shape.weights)
    kept = 4 * numel + 4 * numel + 8 * numel + 4 * numel + count  # copies, gradients twice, state
    for stage, beside in ((2, numel + 4 * 400 * 32), (3, numel)):  # weights again and the largest gradient, or weights
        found = spread.share(recipe, shape, CUDA, Layout("deepspeed", replicate=4, zero_stage=stage, offload="cpu"))
        assert found.host == kept // 4 + beside
        gone = {"optimizer state", "float32 copies", "gradients"}
        assert not any(gone & one.parts.keys() for one in found.moments)
        assert found.moments[0].parts["weights"] == shape.buffer_bytes + (4 * numel if stage == 2 else 0)
    assert spread.share(recipe, shape, CUDA, Layout("deepspeed", replicate=4, zero_stage=3)).host == 0


def test_state_in_files_takes_buffers_of_a_group_on_the_host(told, monkeypatch):
    """Of copy, gradient and two means; beside them weights and gradients by 4. No more than a group has a buffer."""
    recipe, shape = told()
    numel = sum(one.numel for one in shape.weights)
    layout = Layout("deepspeed", replicate=4, zero_stage=3, offload="nvme")
    assert spread.share(recipe, shape, CUDA, layout).host == 4 * numel + numel + numel
    monkeypatch.setattr(spread.zero, "AT_ONCE_IN_FILES", 100)
    found = spread.share(recipe, shape, CUDA, layout)
    assert found.host == 4 * 4 * 100 + numel + numel
    in_memory = spread.share(recipe, shape, CUDA, replace(layout, offload="cpu"))
    assert found.moments == in_memory.moments and found.host < in_memory.host


def test_zero_3_drops_layers_that_are_not_used_again_soon(told, monkeypatch):
    """Of two layers, those that are reached again within so many numbers of both passes wait for the backward pass."""
    recipe, shape = told()
    layer = sum(one.numel for one in shape.weights if one.group in ("attention", "mlp")) // 2
    wide = replace(shape, layers=shape.layers * 4, weights=shape.weights * 4)  # eight
    kept = 4 * sum(one.numel for one in wide.weights if one.group not in ("attention", "mlp"))
    layout = Layout("deepspeed", replicate=4, zero_stage=3)
    for reused, waiting in ((10, 2), (2 * 5 * layer, 5), (2 * 9 * layer, 8)):
        monkeypatch.setattr(spread.zero, "REUSED", reused)
        found = spread.share(recipe, wide, CUDA, layout).moments
        assert found[0].parts["gathered"] == kept + waiting * 4 * layer
        lowest = found[-3]
        assert lowest.name.startswith("layer 0") and lowest.parts["gathered"] == kept + 2 * 4 * layer
