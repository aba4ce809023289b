"""Peak memory of one device of many, by how a model is laid over them.

What one device alone would need (`memory.py`) is divided as the layout says, and what a layout needs beside is added:

- `gathered`: of divided weights the layer in hand and the one that is fetched meanwhile, in the dtype of products, and
  the embedding and the head, which are whole throughout a pass.
- `communication`: DDP's buckets are a copy of the gradients; FSDP2 has a layer's gradients as they come, and in float32
  as they are summed; ZeRO has two buckets of `H * H` numbers, as transformers' `auto` has them.
- `other models`: a reference that is asked in every step and is no adapter turned off.
- offload to the host: its optimizer's state, gradients and weights lie there, and on the device what is gathered.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tunesmith.defaults import with_values
from tunesmith.planner.layout import Layout
from tunesmith.planner.memory import BACKWARD, EMBEDDING, FORWARD, UPDATE, Moment, bits_per_weight, estimate
from tunesmith.planner.passes import WIDE
from tunesmith.planner.shapes import Layer, Linear, Shape
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from tunesmith.defaults import Device

ACROSS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # divided by outputs; the others by inputs
COMMUNICATORS = 500_000_000  # bytes that NCCL's groups hold: about so much, unmeasured


@dataclass(frozen=True)
class Share:
    """What one device of a layout needs."""

    moments: tuple[Moment, ...]
    host: int  # bytes of the host's memory for this device

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda one: one.total)


def share(recipe: Recipe, shape: Shape, device: "Device", layout: Layout) -> Share:
    """The memory of one device in a step of a resolved recipe."""
    tokens = recipe.train.row_tokens
    assert isinstance(tokens, int), "resolved before"
    computed = 2 if recipe.train.bf16 or recipe.train.fp16 or recipe.model.dtype != "float32" else WIDE
    parts = layout.context * (layout.tensor if layout.sequence else 1)
    one = with_values(recipe, {"train.row_tokens": -(-tokens // parts)})
    local = shape if layout.sequence else divided(shape, layout.tensor)
    if layout.strategy == "fsdp" and layout.here:
        local = _gathered_in(local, computed)
    elif layout.strategy in ("fsdp", "deepspeed") and computed < WIDE:  # of others: hidden states are in half precision
        one = with_values(one, {"model.dtype": "bfloat16"})  # too, and nothing is copied by autocast
    alone = estimate(one, local, device)
    over = layout.tensor if layout.sequence else 1
    weights, gradients, state = (count * over for count in layout.shares())
    trained = sum(weight.numel for weight in local.weights if weight.trained)
    base = sum(weight.nbytes for weight in local.weights if weight.trained)
    whole = base if layout.strategy == "fsdp" and layout.here and type(recipe.adapter).beside else 0
    master = trained * WIDE if layout.strategy == "deepspeed" and computed < WIDE else 0
    lighter = base - trained * computed if layout.strategy == "deepspeed" else 0  # its weights are in half precision
    away = layout.offload != "none"

    def moved(moment: Moment) -> Moment:
        found = dict(moment.parts)
        found["weights"] = (whole + (found["weights"] - lighter - whole) // weights) * (not away)
        if not whole:  # what an adapter adds lies on every process, with its gradients and state
            found["optimizer state"] = (found["optimizer state"] + master) // state * (not away)
            found["gradients"] = found.get("gradients", 0) // gradients * (not away)
        if layout.strategy != "one" and "driver" in found:
            found["driver"] += COMMUNICATORS
        found |= _added(recipe, local, layout, computed, over, moment.name)
        return Moment(moment.name, {name: size for name, size in found.items() if size})

    last = alone.moments[-1].parts
    held = (last["weights"] - lighter) // weights + (last["optimizer state"] + master) // state
    return Share(tuple(map(moved, alone.moments)), (held + base // gradients) * away)


def _gathered_in(shape: Shape, computed: int) -> Shape:
    """The shape whose layers have their weights as they are gathered here: in the dtype of products, if not wider."""

    def smaller(linear: Linear) -> Linear:
        return replace(linear, item_bytes=min(linear.item_bytes, computed))

    layers = (
        replace(layer, linears={name: smaller(one) for name, one in layer.linears.items()}) for layer in shape.layers
    )
    return replace(shape, layers=tuple(layers))


def _added(recipe: Recipe, shape: Shape, layout: Layout, computed: int, over: int, moment: str) -> dict[str, int]:
    """What a layout needs beside at a moment, by part."""
    if moment == UPDATE:
        return {}
    found = {}
    bits = bits_per_weight(recipe)
    trained = sum(weight.nbytes for weight in shape.weights if weight.trained)
    largest = max(_numbers(one, bits, computed) for one in shape.layers)
    if layout.strategy == "ddp":
        found["communication"] = trained
    if layout.sequence and layout.tensor > 1:  # inputs of attention and of the pair, and a gradient, of all tokens
        assert isinstance(recipe.train.row_tokens, int), "resolved before"
        tokens = recipe.train.row_tokens * recipe.train.per_device_train_batch_size
        found["gathered rows"] = 3 * tokens * shape.hidden * computed
    if layout.gathers and (layout.devices > 1 or layout.offload != "none"):
        size = shape.head.item_bytes if layout.here else computed
        words = shape.vocabulary * shape.hidden * size * (1 if shape.tied else 2)
        layers = 0 if layout.here and moment == FORWARD else 2 * largest  # each is dropped after its forward pass
        found["gathered"] = (layers + words) // over
    if layout.strategy == "fsdp" and layout.devices > 1:
        found["communication"] = max(one.trained for one in shape.layers) * (computed + WIDE) // over
        if layout.here:
            found["communication"] = _whole_gradients(recipe, shape, computed, moment)
    if layout.strategy == "deepspeed" and layout.devices > 1:
        found["communication"] = 2 * min(shape.hidden**2 * computed, trained)
    return found


def _whole_gradients(recipe: Recipe, shape: Shape, computed: int, moment: str) -> int:
    """Gradients that are not divided yet, and what sums them in float32.

    Of a layer they are, while its backward pass runs. What is in no layer has its own until the backward pass is over.
    """
    if type(recipe.adapter).beside or moment == FORWARD:
        return 0
    words = shape.vocabulary * shape.hidden * shape.head.item_bytes
    head, embedding = words * shape.head.trained, words * shape.embedding_trained
    if moment == EMBEDDING:
        return 2 * (max(head, embedding) if shape.tied else head + embedding)
    layer = max(one.trained for one in shape.layers) * (computed + WIDE)
    return head + layer * (moment != BACKWARD)


def _numbers(layer: Layer, bits: tuple[float, float] | None, computed: int) -> int:
    """Bytes of a layer's weights as they are gathered: those that stay in few bits come in these."""
    plain = sum(one.inputs * one.outputs for one in layer.linears.values())
    each = computed if bits is None else bits[0] / 8
    return int(plain * each)


def divided(shape: Shape, parts: int) -> Shape:
    """The shape of what one device has where each layer's products are divided over some."""
    if parts == 1:
        return shape

    def smaller(layer: Layer) -> Layer:
        linears = {
            name: replace(one, outputs=one.outputs // parts)
            if name in ACROSS
            else replace(one, inputs=one.inputs // parts)
            for name, one in layer.linears.items()
        }
        return replace(
            layer, linears=linears, trained=layer.trained // parts, trained_bytes=layer.trained_bytes // parts
        )

    weights = (
        replace(one, shape=(one.shape[0] // parts, *one.shape[1:]))
        if one.group in ("attention", "mlp", "head") and one.shape[0] >= parts
        else one
        for one in shape.weights
    )
    return replace(
        shape,
        heads=shape.heads // parts,
        key_heads=shape.key_heads // parts,
        inner=shape.inner // parts,
        layers=tuple(map(smaller, shape.layers)),
        weights=tuple(weights),
    )
