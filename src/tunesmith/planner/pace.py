"""How long a step takes on devices whose rates are known: by arithmetic, by the device's memory and by its links.

- products: their operations by the rate of a data sheet, of which training reaches a share (`REACHED`).
- memory: what norms, gates, rotations and sums read and write, and products too, by the bandwidth of the device's
  memory. Of products that tensor parallelism divides one side stays as wide as it was.
- links: FSDP gathers a layer's weights for each pass and sums its gradients; DDP and ZeRO sum gradients. That goes on
  beside the products and counts where it is longer. What tensor and context parallelism send, a layer waits for.
- update: what the optimizer reads and writes; with offload in the host's memory, or beside that in files on a disk,
  which its devices share.

A multiply-accumulate is two operations. Letters: H hidden size, Q and K widths of query and key heads, I inner size.
"""

from dataclasses import dataclass

from tunesmith.planner.devices import Cluster
from tunesmith.planner.layout import Layout
from tunesmith.planner.shapes import Shape
from tunesmith.planner.spread import ACROSS
from tunesmith.recipe import Recipe
from tunesmith.recipe_zero import NVME

REACHED = 0.444  # of a device's dense peak, as products of a training step reach it: see docs/guide/scale.md
HALF = 2  # bytes of a number that is sent
# Bytes that a token's forward pass reads and writes of each number of H, of Q and K, and of I; half precision, with
# float32 within norms. By the tensors of transformers' Llama layers, one kernel for each operation; or compiled.
TRAFFIC = {False: (80, 16, 10), True: (20, 8, 6)}
BACKWARD = 2  # times as much as forward
HOST_BANDWIDTH = 200e9  # bytes a second of a machine's own memory, of two processors: about so much, unmeasured
DISK_BANDWIDTH = 5e9  # bytes a second of a machine's disk (NVMe), read and written alike: about so much, unmeasured
IN_FILES = 24  # of the bytes below: weight and two moments are read and written
UPDATE = 28  # bytes of a trained number: weight, gradient and two moments in float32 are read, all but one written


@dataclass(frozen=True)
class Pace:
    """Seconds of a step of every device together, and the tokens in it."""

    products: float
    memory: float
    links: float  # beyond what goes on beside the products
    update: float
    tokens: int

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.products + self.memory + self.links + self.update

    @property
    def tokens_per_second(self) -> float:
        """Of all devices."""
        return self.tokens / self.seconds


def pace(recipe: Recipe, shape: Shape, layout: Layout, cluster: Cluster, again: float | None = None) -> Pace:
    """The pace of an optimizer step of a resolved recipe.

    `again` is the share of products that the backward pass computes again, in place of what checkpointing says.
    """
    train, device = recipe.train, cluster.device
    assert isinstance(train.row_tokens, int), "resolved before"
    row = train.row_tokens * train.per_device_train_batch_size
    longest = min(recipe.data.max_tokens, train.row_tokens)
    repeated = recomputed(recipe) if again is None else again
    micro = train.gradient_accumulation_steps
    width = layout.tensor * layout.context  # devices that share a row
    work = row * operations(shape, longest, repeated) / width
    products = work / (device.flops * REACHED)
    passes = 1 + BACKWARD + (1 if train.activation_checkpointing else 0)
    spared = layout.context * (layout.tensor if layout.sequence else 1)
    moved = passes * _traffic(shape, train.compile is not False, layout.tensor) / spared
    moved += _of_products(shape, layout.tensor, repeated) / layout.context
    memory = row * moved / device.bandwidth
    waited = _waited(shape, layout, cluster, row, repeated)
    beside = _beside(shape, layout, cluster)
    links = micro * waited + max(0.0, beside * (micro if layout.gathers else 1) - micro * (products + memory))
    trained = sum(one.numel for one in shape.weights if one.trained) / layout.tensor / layout.shares()[2]
    update = trained * UPDATE / (device.bandwidth if layout.offload is None else HOST_BANDWIDTH / cluster.each)
    update += trained * IN_FILES * cluster.each / DISK_BANDWIDTH if layout.offload == NVME else 0
    tokens = row * micro * layout.rows
    return Pace(micro * products, micro * memory, links, update, tokens)


def recomputed(recipe: Recipe) -> float:
    """The share of the layers' products that are computed twice."""
    how = recipe.train.activation_checkpointing
    if how is True:
        return 1.0
    return 0.0 if how is False or how == "selective" else 1 / int(how)


def operations(shape: Shape, longest: int, again: float = 0.0) -> float:
    """The operations of a token, forward and backward, in sequences of so many tokens, of which half are seen."""
    found = 0.0
    seen = min((longest + 1) / 2, shape.window or longest)
    for layer in shape.layers:
        plain = sum(one.inputs * one.outputs for one in layer.linears.values())
        own = sum(one.inputs * one.outputs * one.trained for one in layer.linears.values())
        ranks = sum(one.rank * (one.inputs + one.outputs) for one in layer.linears.values())
        attention = 2 * shape.queries * seen  # multiply-accumulates of scores and sums
        forward = 2 * (plain + ranks + attention)
        found += forward * (1 + layer.learns * (1 + again)) + 2 * (own + ranks) + 2 * attention * layer.learns
    head = 2 * shape.hidden * shape.vocabulary
    return found + head * (2 + shape.head.trained)


def _traffic(shape: Shape, fused: bool, tensor: int) -> float:
    """Bytes of a token's forward pass through all layers."""
    hidden, heads, inner = TRAFFIC[fused]
    each = hidden * shape.hidden + (heads * (shape.queries + shape.keys) + inner * shape.inner) / tensor
    return each * len(shape.layers)


def _of_products(shape: Shape, tensor: int, again: float) -> float:
    """Bytes of a token that products read and write in all layers: inputs [H] or [I] and outputs, or their gradients.

    A frozen weight has a product in each pass, and a trained one another for its gradient.
    """
    found = 0.0
    for layer in shape.layers:
        for name, one in layer.linears.items():
            inputs, outputs = (1, tensor) if name in ACROSS else (tensor, 1)
            times = 1 + layer.learns * (1 + again) + one.trained
            found += times * (one.inputs / inputs + one.outputs / outputs) * HALF
    return found


def _waited(shape: Shape, layout: Layout, cluster: Cluster, row: int, again: float) -> float:
    """Seconds of a micro-step in which layers wait for other devices.

    Tensor parallelism sums [T, H] twice a layer and pass, in 2 (t-1)/t of its bytes each; context parallelism exchanges
    the heads of a piece's queries, keys, values and outputs for those of other pieces.
    """
    passes = 2 + again
    tensor = 2 * 2 * (layout.tensor - 1) / layout.tensor * row * shape.hidden * HALF / layout.context
    moved = 2 * (shape.queries + max(shape.keys, layout.context * shape.head_size))  # a key head for each device
    context = (layout.context - 1) / layout.context * row / layout.context * moved * HALF
    link = cluster.link(layout.tensor * layout.context)
    return len(shape.layers) * passes * (tensor + context) / link


def _beside(shape: Shape, layout: Layout, cluster: Cluster) -> float:
    """Seconds in which weights are gathered and gradients summed, beside the products."""
    sent = (one.nbytes if layout.strategy == "deepspeed" else one.numel * HALF for one in shape.weights)
    whole = (
        sum(sent) / layout.tensor
    )  # bytes of the weights as they are gathered: DeepSpeed has them in their own dtype
    trained = sum(one.numel for one in shape.weights if one.trained) / layout.tensor
    wide = 2 * HALF  # gradients are summed in float32
    group = layout.fsdp * layout.context if layout.strategy == "fsdp" else layout.rows * layout.context
    part = (group - 1) / group
    inner = cluster.link(group * layout.tensor)
    if layout.gathers:
        found = part * (2 * whole + trained * wide) / inner
        copies = (layout.replicate - 1) / layout.replicate if layout.strategy == "fsdp" else 0
        found += 2 * copies * trained * wide / group / cluster.link(layout.devices)
    else:
        found = 2 * part * trained * wide / inner
    if layout.offload is not None:  # gradients go there, and what is updated comes back; or all parts, for each pass
        found += ((2 * whole if layout.gathers else trained * wide) + trained * wide) / group / cluster.device.host
    return found


def share_of_peak(pace: Pace, shape: Shape, longest: int, cluster: Cluster) -> float:
    """The operations that the arithmetic needs, as a share of what the devices could do (MFU)."""
    needed = pace.tokens * operations(shape, longest)
    return needed / pace.seconds / (cluster.devices * cluster.device.flops)
