"""Peak memory of one device of many, by how a model is laid over them.

What one device alone would need (`memory.py`) is divided as the layout says, and what a layout needs beside is added:

- `gathered`: of divided weights the layer in hand and the one that is fetched meanwhile, in the dtype of products, and
  the embedding and the head, which are whole throughout a pass.
- `communication`: DDP's buckets are a copy of the gradients; FSDP2 has a layer's gradients as they come, and in float32
  as they are summed.
- `other models`: a reference that is asked in every step and is no adapter turned off.

What DeepSpeed's ZeRO adds is in `zero.py`. Of tensor parallelism embeddings, norms, head and what an adapter adds lie
whole on each device, and hidden states too. `Layout.sequence` has torchtitan's in place of ours: all weights and rows
divided, hidden states in half precision.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tunesmith.defaults import with_values
from tunesmith.planner import zero
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
    host: int = 0  # bytes of the host's memory for this device

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda one: one.total)


def share(recipe: Recipe, shape: Shape, device: "Device", layout: Layout) -> Share:
    """The memory of one device in a step of a resolved recipe."""
    tokens = recipe.train.row_tokens
    assert isinstance(tokens, int), "resolved before"
    computed = 2 if recipe.train.bf16 or recipe.train.fp16 or recipe.model.dtype != "float32" else WIDE
    beside = type(recipe.adapter).beside
    parts = layout.context * (layout.tensor if layout.sequence else 1)
    one = with_values(recipe, {"train.row_tokens": -(-tokens // parts)})
    local = shape if layout.sequence else divided(shape, layout.tensor, beside)
    if layout.tensor > 1 and not layout.sequence:
        one = with_values(one, {"train.compile": False})  # as `shared_out.compiles` has it
    if layout.sequence and computed < WIDE:  # hidden states are in half precision too, and nothing is copied
        one = with_values(one, {"model.dtype": "bfloat16"})
    elif layout.strategy == "fsdp":
        local = _gathered_in(local, computed)
    alone = estimate(one, local, device)
    if layout.strategy == "deepspeed":
        each, host = zero.moments(one, local, layout, alone.moments)
        return Share(tuple(map(_with_driver, each)), host)
    over = layout.tensor if layout.sequence else 1
    weights, gradients, state = (count * over for count in layout.shares())
    base = sum(weight.nbytes for weight in local.weights if weight.trained)
    whole = base if layout.strategy == "fsdp" and not layout.sequence and beside else 0

    def moved(moment: Moment) -> Moment:
        found = dict(moment.parts)
        found["weights"] = whole + (found["weights"] - whole) // weights
        if not whole:  # what an adapter adds lies on every process, with its gradients and state
            found["optimizer state"] = found["optimizer state"] // state
            found["gradients"] = found.get("gradients", 0) // gradients
        found |= _added(recipe, local, layout, computed, over, moment.name)
        return Moment(moment.name, {name: size for name, size in found.items() if size})

    moments = map(moved, alone.moments)
    return Share(tuple(moments if layout.strategy == "one" else map(_with_driver, moments)))


def _with_driver(moment: Moment) -> Moment:
    """With what NCCL holds, where a driver holds anything."""
    parts = dict(moment.parts)
    return Moment(moment.name, parts | ({"driver": parts["driver"] + COMMUNICATORS} if "driver" in parts else {}))


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
    as_stored = next(((one.stored.number, 0.0) for one in shape.weights if one.stored is not None), None)
    bits = as_stored or bits_per_weight(recipe)
    trained = sum(weight.nbytes for weight in shape.weights if weight.trained)
    largest = max(_numbers(one, bits, computed) for one in shape.layers)
    if layout.strategy == "ddp" and layout.devices > layout.tensor:
        found["communication"] = trained
    if layout.sequence and layout.tensor > 1:  # inputs of attention and of the pair, and a gradient, of all tokens
        assert isinstance(recipe.train.row_tokens, int), "resolved before"
        tokens = recipe.train.row_tokens * recipe.train.per_device_train_batch_size
        found["gathered rows"] = 3 * tokens * shape.hidden * computed
    if layout.strategy == "fsdp" and layout.devices > 1:
        size = computed if layout.sequence else shape.head.item_bytes
        words = shape.vocabulary * shape.hidden * size * (1 if shape.tied else 2)
        layers = 0 if not layout.sequence and moment == FORWARD else 2 * largest  # each is dropped after its pass
        found["gathered"] = (layers + words) // over
        found["communication"] = max(one.trained for one in shape.layers) * (computed + WIDE) // over
        if not layout.sequence:
            found["communication"] = _whole_gradients(recipe, shape, computed, moment)
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
    plain = sum(map(_numel, layer.linears.values()))
    each = computed if bits is None else bits[0] / 8
    return int(plain * each)


def divided(shape: Shape, parts: int, beside: bool = False) -> Shape:
    """The shape of what one device has where each layer's products are divided over some.

    Embeddings, norms and head lie whole on each, and so does what an adapter adds `beside` the weights.
    """
    if parts == 1:
        return shape

    def smaller(layer: Layer) -> Layer:
        linears = {
            name: replace(one, outputs=one.outputs // parts)
            if name in ACROSS
            else replace(one, inputs=one.inputs // parts)
            for name, one in layer.linears.items()
        }
        gone = sum(_numel(one) - _numel(linears[name]) for name, one in layer.linears.items() if one.trained)
        each = layer.trained_bytes // max(layer.trained, 1)
        return replace(
            layer, linears=linears, trained=layer.trained - gone, trained_bytes=layer.trained_bytes - gone * each
        )

    weights = (
        replace(one, shape=(one.shape[0] // parts, *one.shape[1:]))
        if one.group in ("attention", "mlp") and len(one.shape) == 2 and not (beside and one.trained)
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


def _numel(linear: Linear) -> int:
    return linear.inputs * linear.outputs
