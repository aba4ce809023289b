"""Peak memory of a training step by part, from shapes alone.

A step is five moments, and the peak is the largest: the head in the forward pass, when every layer has kept what it
keeps; the backward pass at each layer, as kept tensors go and gradients come; the gradient of the embedding; and the
update. At each, weights and the optimizer's state lie beneath. What loading a model needs for a moment, what a device's
driver holds (`CONTEXT`) and what an allocator's gaps take are named apart, not hidden in a factor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.component import name_of
from tunesmith.planner.passes import HeadPass, Pass
from tunesmith.planner.shapes import Linear, Shape, Weight
from tunesmith.recipe import Recipe
from tunesmith.seams import Optimizer

if TYPE_CHECKING:
    from tunesmith.defaults import Device

CONTEXT = {
    "cuda": 500_000_000
}  # bytes that CUDA's driver and its libraries hold of a device: about so much, unmeasured
BATCH_BYTES = 5 * 8 + 2 * 4  # of a token: five numbers of int64, two of float32
UPDATE_SCRATCH = {("adamw8bit", "cpu"): 24}  # bytes a value of the weight in hand: bitsandbytes' update in plain torch
ABSMAX_BLOCK, NESTED_BLOCK = 64, 256  # weights of a 4-bit base with one scale; scales with one scale of their own


@dataclass(frozen=True)
class Moment:
    """Bytes by part at one moment of a step."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Estimate:
    """The moments of a step on one device, and what else is known of it."""

    moments: tuple[Moment, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda one: one.total)


def estimate(recipe: Recipe, shape: Shape, device: "Device", quantization: Any | None = None) -> Estimate:
    """The memory of a step of a resolved recipe whose `train.row_tokens` is a number.

    `quantization` is a component in place of `model.quantization`.
    """
    held = getattr(recipe.model, "quantization", None) if quantization is None else quantization
    bits = bits_per_weight(held, recipe.model.frozen_dtype)
    run = pass_of(recipe, shape, device, bits is not None)
    trained = [one for one in shape.weights if one.trained]
    state = sum(state_bytes(recipe.optimizer, one) for one in trained)
    under = {
        "weights": sum(_weight_bytes(one, bits) for one in shape.weights) + shape.buffer_bytes,
        "optimizer state": state,
        "row": run.tokens * BATCH_BYTES + 2 * run.tokens * shape.head_size * run.states,
    }
    if device.type in CONTEXT:
        under["driver"] = CONTEXT[device.type]
    found = _moments(recipe, run, under, sum(one.nbytes for one in trained))
    scratch = UPDATE_SCRATCH.get((name_of(recipe.optimizer), device.type), 0)
    if scratch:
        last = found.pop()
        found.append(Moment(last.name, {**last.parts, "kernels": scratch * max(one.numel for one in trained)}))
    return Estimate(tuple(found))


def pass_of(recipe: Recipe, shape: Shape, device: "Device", quantised: bool = False) -> Pass:
    """The pass of a row of `train.row_tokens` tokens, all of them asked, in sequences of `data.max_tokens`."""
    train = recipe.train
    assert isinstance(train.row_tokens, int), "resolved before"
    states = {"float32": 4}.get(recipe.model.dtype, 2)
    computed = 2 if train.bf16 or train.fp16 else states
    numel = sum(one.numel for one in shape.weights)
    largest = max((one.numel for one in shape.weights if one.in_layers), default=0)
    return Pass(
        shape=shape,
        tokens=train.row_tokens * train.per_device_train_batch_size,
        longest=min(recipe.data.max_tokens, train.row_tokens),
        asked=train.row_tokens * train.per_device_train_batch_size,
        states=states,
        computed=computed,
        fused=is_fused(train.compile, numel, device.type),
        cuda=device.type == "cuda",
        checkpointing=train.activation_checkpointing,
        likelihood=recipe.objective.is_likelihood(),
        dequantised=largest * computed if quantised and recipe.model.frozen_dtype is None else 0,
    )


def is_fused(wanted: bool | None, parameters: int, kind: str) -> bool:
    """Whether norms and gated pairs are compiled, as `engine.kernels.elementwise` decides it; CUDA has a compiler."""
    from tunesmith.engine.elementwise import COMPILED_FROM, compiler

    if wanted is not None:
        return wanted
    return parameters >= COMPILED_FROM and (kind != "cpu" or compiler(kind) is None)


def _moments(recipe: Recipe, run: Pass, under: Mapping[str, int], gradients: int) -> list[Moment]:
    head, layers = HeadPass(run), run.shape.layers
    released, accumulates = recipe.train.release_gradients, recipe.train.gradient_accumulation_steps > 1
    before = gradients if accumulates else 0  # of the micro-batches before
    held = [run.held(number) for number in range(len(layers))]
    copies = _copies(run)

    def at(name: str, **parts: int) -> Moment:
        shown = {key.replace("_", " "): value for key, value in parts.items() if value}
        return Moment(name, {**under, **shown})

    found = [
        at(
            "the head, forward",
            activations=sum(held) + head.kept(),
            gradients=before,
            autocast_copies=sum(copies),
            head_blocks=head.forward(),
        ),
        at(
            "the head, backward",
            activations=sum(held) + head.kept(),
            gradients=before,
            autocast_copies=_left(run, copies, len(layers)),
            head_blocks=head.backward(),
        ),
    ]
    head_bytes = run.shape.head.inputs * run.shape.head.outputs * run.shape.head.item_bytes * run.shape.head.trained
    come = head_bytes
    for number in reversed(range(len(layers))):
        layer = layers[number]
        if not layer.learns:
            break
        own = sum(run.kept(layer).values()) if run.again(number) else held[number]
        extra = run.beside_again(number)
        found.append(
            at(
                f"layer {number}, backward",
                activations=sum(held[:number]) + own + extra,
                gradients=_largest(run) if released else before or come,
                autocast_copies=_left(run, copies, number + 1),
                kernels=run.layer_scratch(layer) + layer.trained_bytes * (accumulates or not layer.below),
            )
        )
        come += layer.trained_bytes
    embedding = run.shape.vocabulary * run.shape.hidden * run.states * run.shape.embedding_trained
    whole = _largest(run) if released else gradients
    found.append(at("the embedding, backward", gradients=whole, kernels=embedding * (run.shape.tied or accumulates)))
    found.append(at("the update", gradients=whole))
    return found


def _copies(run: Pass) -> list[int]:
    """Autocast's copies in half precision of the float32 weights of each learning layer, made once a forward pass."""

    def of(linear: Linear) -> int:
        mine = linear.item_bytes != run.computed and not linear.rank  # beside an update, nothing of a weight is kept
        return linear.inputs * linear.outputs * run.computed * (run.autocast and mine)

    return [sum(map(of, layer.linears.values())) if layer.learns else 0 for layer in run.shape.layers]


def _left(run: Pass, copies: list[int], layers: int) -> int:
    """Those that the lowest layers hold in the backward pass: all of theirs, or one layer's that computes again."""
    kept = sum(copy for number, copy in enumerate(copies[:layers]) if not run.again(number))
    return kept + max((copy for number, copy in enumerate(copies[:layers]) if run.again(number)), default=0)


def _largest(run: Pass) -> int:
    """The largest trained weight's gradient, where gradients are dropped as they are used."""
    return max((one.nbytes for one in run.shape.weights if one.trained), default=0)


def _weight_bytes(weight: Weight, bits: "tuple[float, float] | None") -> int:
    if bits is None or not weight.in_layers:
        return weight.nbytes
    per_weight, per_row = bits
    return int((weight.numel * per_weight + weight.shape[0] * per_row) / 8)


def bits_per_weight(quantization: Any | None, frozen_dtype: str | None) -> tuple[float, float] | None:
    """Bits of a weight of a frozen linear layer, and of a row of them; None: it is held in its own dtype.

    4 bits have a float32 scale for every 64 weights (QLoRA, arXiv 2305.14314); with double quantisation 8 bits for
    each, and a float32 for every 256 of these: 0.127 bits a weight. A component may say `bits_per_weight` itself.
    """
    if frozen_dtype is not None:
        return (8.0, 32.0) if frozen_dtype == "int8" else (16.0, 64.0)  # float8 has a transposed copy
    if quantization is None:
        return None
    said = getattr(quantization, "bits_per_weight", None)
    if said is not None:
        return (float(said() if callable(said) else said), 0.0)
    nested = 8 / ABSMAX_BLOCK + 32 / (ABSMAX_BLOCK * NESTED_BLOCK)
    scales = nested if getattr(quantization, "use_double_quant", False) else 32 / ABSMAX_BLOCK
    bits = float(getattr(quantization, "bits", getattr(quantization, "nbits", 4)))
    return {"bnb_4bit": (4 + scales, 0.0), "bnb_8bit": (8.0, 32.0)}.get(name_of(quantization), (bits + 0.5, 0.0))


def state_bytes(optimizer: Optimizer, weight: Weight) -> int:
    """What an optimizer keeps of a trained weight, as it says itself."""
    import torch

    dtype = {2: torch.bfloat16, 4: torch.float32}[weight.item_bytes]
    return optimizer.kept_bytes(weight.name, torch.empty(weight.shape, dtype=dtype, device="meta"))
