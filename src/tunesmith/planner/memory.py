"""Peak memory of a training step by part, from shapes alone.

A step is five moments, and the peak is the largest: the head in the forward pass, when every layer has kept what it
keeps; the backward pass at each layer, as kept tensors go and gradients come; the gradient of the embedding; and the
update. At each, weights and the optimizer's state lie beneath. What loading a model needs for a moment, what a device's
driver holds (`CONTEXT`) and what an allocator's gaps take are named apart, not hidden in a factor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunesmith.component import name_of
from tunesmith.planner.others import other_models
from tunesmith.planner.passes import HeadPass, Pass
from tunesmith.planner.shapes import FROZEN_BITS, Linear, Shape
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from tunesmith.defaults import Device

CONTEXT = {
    "cuda": 500_000_000
}  # bytes that CUDA's driver and its libraries hold of a device: about so much, unmeasured
FORWARD, BACKWARD, EMBEDDING = "the head, forward", "the head, backward", "the embedding, backward"
UPDATE = "the update"
BATCH_BYTES = 5 * 8 + 2 * 4  # of a token: five numbers of int64, two of float32
UPDATE_SCRATCH = {("adamw8bit", "cpu"): 24}  # bytes a value of the weight in hand: bitsandbytes' update in plain torch


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


def estimate(recipe: Recipe, shape: Shape, device: "Device") -> Estimate:
    """The memory of a step of a resolved recipe whose `train.row_tokens` is a number."""
    bits = bits_per_weight(recipe)
    run = pass_of(recipe, shape, device, bits is not None or shape.stored_in is not None)
    trained = [one for one in shape.weights if one.trained]
    under = {
        "weights": sum(one.bytes_in(bits) for one in shape.weights) + shape.buffer_bytes,
        "optimizer state": state_bytes(recipe, shape),
        "row": run.tokens * BATCH_BYTES + 2 * run.tokens * shape.head_size * run.states,
    }
    others = other_models(recipe, shape)
    if others:
        under["other models"] = others
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
            FORWARD,
            activations=sum(held) + head.kept(),
            gradients=before,
            autocast_copies=sum(copies) + head.copied(),
            head_blocks=head.forward(),
        ),
        at(
            BACKWARD,
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
    found.append(at(EMBEDDING, gradients=whole, kernels=embedding * (run.shape.tied or accumulates)))
    found.append(at(UPDATE, gradients=whole))
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


def bits_per_weight(recipe: Recipe) -> tuple[float, float] | None:
    """Bits of a weight of a frozen linear layer, and of a row of them; None: it is held in its own dtype."""
    held, named = recipe.model.quantization, recipe.model.frozen_dtype
    if named is not None:
        return FROZEN_BITS[named]
    return None if held is None else held.bits_per_weight()


def state_bytes(recipe: Recipe, shape: Shape) -> int:
    """What the optimizer keeps of the trained weights, as it says itself."""
    import torch

    dtypes = {2: torch.bfloat16, 4: torch.float32}
    named = (
        (one.name, torch.empty(one.shape, dtype=dtypes[one.item_bytes], device="meta", requires_grad=one.trained))
        for one in shape.weights
    )
    return recipe.optimizer.state_bytes(named, shape.head_size)
