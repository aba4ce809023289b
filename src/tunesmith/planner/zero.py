"""What one process holds where DeepSpeed's ZeRO shares out a step's memory, by what DeepSpeed 0.19 allocates.

What one device alone would need (`memory.py`) is divided as the stage says. Beside that lie:

- `float32 copies`: of the trained weights that a process updates, flattened; of those that are float32 already too.
- `gradients`: whole until the update at stage 1, with those that a process updates once more; a part of them at 2, and
  at 3, where it is there for good. At the update those of a process once more, flattened.
- `gathered`: at stage 3 what is in no layer (embeddings, head), for the whole step, and of layers those that are used
  again before `REUSED` numbers are, or the layer in hand and what is fetched meanwhile; in the weights' own dtype.
- `communication`: a bucket of `H * H` numbers, and the gradient of a weight that no bucket takes, once more.
- offload: copies, state and gradients in float32 lie in the host's memory, and at stage 3 the weights' parts. Where
  copies and state are in files instead, buffers of a group of weights are there: of copy, gradient and each state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.planner.layout import Layout
from tunesmith.planner.memory import BACKWARD, EMBEDDING, FORWARD, UPDATE, Moment, bits_per_weight, state_bytes
from tunesmith.planner.passes import WIDE
from tunesmith.planner.shapes import Shape, Weight
from tunesmith.recipe import Recipe
from tunesmith.recipe_zero import AT_ONCE as AT_ONCE_IN_FILES
from tunesmith.recipe_zero import NVME

REUSED = 1_000_000_000  # numbers of both passes: DeepSpeed's stage3_max_reuse_distance, that nobody says here
AT_ONCE = 1_000_000_000  # numbers that stage 3 updates together: its sub_group_size


@dataclass(frozen=True)
class _Held:
    """What the moments of a process have in common, in bytes."""

    number: int  # of processes
    stage: int
    here: bool  # nothing is offloaded
    files: bool  # copies and state are
    copies: int  # of trained weights in float32, all of them
    trained: int
    state: int
    within: int  # weights of layers
    kept: int  # other weights
    layers: int
    waiting: int  # layers that are used again soon enough to stay
    bucket: int
    largest: int  # trained weight
    largest_in_layer: int
    largest_elsewhere: int
    buffers: int


def moments(recipe: Recipe, shape: Shape, layout: Layout, alone: Sequence[Moment]) -> tuple[tuple[Moment, ...], int]:
    """The moments of one device alone as a process has them, and the bytes of the host's memory that are its own."""
    bits = bits_per_weight(recipe)
    trained = [one for one in shape.weights if one.trained]
    layered = [one for one in shape.weights if _in_layer(one)]
    within, numbers, layers = (
        sum(one.bytes_in(bits) for one in layered),
        sum(one.numel for one in layered),
        len(shape.layers),
    )
    wide = (replace(one, item_bytes=WIDE) if one.trained else one for one in shape.weights)
    held = _Held(
        number=layout.devices,
        stage=layout.zero_stage,
        here=layout.offload is None,
        files=layout.offload == NVME,
        copies=sum(one.numel for one in trained) * WIDE,
        trained=sum(one.nbytes for one in trained),
        state=state_bytes(recipe, replace(shape, weights=tuple(wide))),  # that of float32 weights
        within=within,
        kept=sum(one.bytes_in(bits) for one in shape.weights) - within,
        layers=layers,
        waiting=min(layers, REUSED // 2 * layers // max(numbers, 1)),
        bucket=shape.hidden**2 * max((one.item_bytes for one in trained), default=0),
        largest=max((one.nbytes for one in trained), default=0),
        largest_in_layer=max((one.nbytes for one in trained if _in_layer(one)), default=0),
        largest_elsewhere=max((one.nbytes for one in trained if not _in_layer(one)), default=0),
        buffers=shape.buffer_bytes,
    )
    return tuple(_moved(held, one) for one in alone), _on_host(held)


def _in_layer(weight: Weight) -> bool:
    return weight.group in ("attention", "mlp")


def _moved(held: _Held, moment: Moment) -> Moment:
    found = dict(moment.parts)
    if held.stage == 3:
        found["weights"] = held.buffers + (found["weights"] - held.buffers) // held.number * held.here
        found["gathered"] = _gathered(held, moment.name)
    found["float32 copies"] = held.copies // held.number * held.here
    found["optimizer state"] = held.state // held.number * held.here
    found["gradients"] = _gradients(held, found.get("gradients", 0), moment.name)
    found["communication"] = _sent(held, moment.name)
    return Moment(moment.name, {name: size for name, size in found.items() if size})


def _on_host(held: _Held) -> int:
    """Bytes of the host's memory that are one process's: nothing without offload.

    At stage 2 also its weights and gradients once more in their own dtype, and room for the largest gradient; at 3 its
    part of all weights, and its gradients in their own dtype.
    """
    if held.here:
        return 0
    if held.files:
        wide = 0 if held.trained == held.copies else held.copies  # gradients in float32 once more, if they are not
        gathered = min(held.copies // held.number, AT_ONCE_IN_FILES * WIDE)
        buffers = gathered * (2 + held.state // max(held.copies, 1))
        return buffers + (held.trained + wide + held.within + held.kept) // held.number
    found = (2 * held.copies + held.state + held.trained) // held.number
    if held.stage == 3:
        return found + (held.within + held.kept) // held.number
    return found + held.trained // held.number + held.largest


def _gradients(held: _Held, alone: int, moment: str) -> int:
    """Those that lie on the device, of so many as one device alone has at a moment."""
    part = held.trained // held.number
    if not held.here:
        return 0
    if moment == UPDATE:
        return part + min(held.copies // held.number, AT_ONCE * WIDE)
    if held.stage == 1:
        return alone + part * (moment not in (FORWARD, BACKWARD))
    return part if held.stage == 3 else min(alone, part)


def _sent(held: _Held, moment: str) -> int:
    """The bucket, and in the backward pass the largest gradient of a layer, or of what is in none, as it is sent.

    Stage 2 has room for the largest of all where gradients go to the host.
    """
    room = held.largest * (held.stage == 2 and not held.here)
    if moment in (FORWARD, UPDATE):
        return room
    return room + held.bucket + (held.largest_elsewhere if moment == EMBEDDING else held.largest_in_layer)


def _gathered(held: _Held, moment: str) -> int:
    """Weights that stage 3 has whole at a moment."""
    if moment in (EMBEDDING, UPDATE):
        return held.kept
    each, last = held.within // held.layers, held.layers - 1
    here = last if moment in (FORWARD, BACKWARD) else int(moment.split()[1].rstrip(","))  # the layer in hand
    waiting = here + 1 - (held.layers - held.waiting)
    return held.kept + each * max(waiting, min(2, held.layers))
