"""How a model and its rows are laid over devices, and the recipe's words for it."""

from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.planner.devices import Cluster
from tunesmith.planner.shapes import Shape

WIDEST = 8  # devices that tensor parallelism or context parallelism is tried over


@dataclass(frozen=True)
class Layout:
    """A strategy and its sizes; their product is the number of devices.

    `ddp`: every device has all. `fsdp`: weights, gradients and state are divided over `fsdp` devices, and gathered
    layer by layer; with `replicate` copies of that (HSDP). `deepspeed`: ZeRO, of which stage 1 divides state, 2
    gradients too, 3 weights too, over `replicate` devices. `tensor` divides each layer's products; `context` each row.
    """

    strategy: str  # one, ddp, fsdp, deepspeed
    replicate: int = 1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    zero_stage: int = 0
    offload: str = "none"
    sequence: bool = False  # what tensor parallelism leaves whole is divided by tokens: torchtitan does, we do not

    @property
    def devices(self) -> int:
        """How many it takes."""
        return self.replicate * self.fsdp * self.tensor * self.context

    @property
    def rows(self) -> int:
        """How many packed rows are in a micro-step together."""
        return self.replicate * self.fsdp

    @property
    def here(self) -> bool:
        """Whether this package trains so; other layouts are planned to be compared with, for other trainers."""
        own = self.strategy in ("one", "ddp", "fsdp") and self.offload == "none" and not self.sequence
        return own and self.tensor == 1

    @property
    def gathers(self) -> bool:
        """Whether weights are divided and gathered layer by layer."""
        return self.strategy == "fsdp" or self.zero_stage == 3

    def shares(self) -> tuple[int, int, int]:
        """Over how many devices weights, gradients and state are divided, beside `tensor`."""
        if self.strategy == "fsdp":
            shards = self.fsdp * self.context
            return shards, shards, shards
        many = self.rows * self.context
        return tuple(many if self.zero_stage >= stage else 1 for stage in (3, 2, 1))  # type: ignore[return-value]

    def words(self) -> tuple[str, ...]:
        """The recipe's words that select it; () where none need be said, or none is."""
        if self.strategy == "one" or not self.here:
            return ()
        copies = (
            {"replicate": self.replicate, "fsdp": self.fsdp} if self.strategy == "fsdp" and self.replicate > 1 else {}
        )
        sizes = copies | ({"context": self.context} if self.context > 1 else {})
        return (f"parallel.strategy={self.strategy}", *(f"parallel.{name}={size}" for name, size in sizes.items()))

    def __str__(self) -> str:
        sizes = {"x": self.replicate, "fsdp ": self.fsdp, "tp ": self.tensor, "cp ": self.context}
        name = f"zero-{self.zero_stage}" if self.zero_stage else self.strategy
        if self.strategy == "fsdp":
            kind = "hsdp" if self.replicate > 1 else "fsdp"
            shown = [f"{kind} {f'{self.replicate}x' if self.replicate > 1 else ''}{self.fsdp}"]
            name = " ".join([*shown, *(f"{word}{sizes[word]}" for word in ("tp ", "cp ") if sizes[word] > 1)])
        return f"{name}, offload {self.offload}" if self.offload != "none" else name


def layouts(cluster: Cluster, shape: Shape, row_tokens: int, adapted: bool) -> Iterator[Layout]:
    """The layouts that are compared on some machines; `adapted` models are not divided within a layer."""
    many, each = cluster.devices, cluster.each
    if many == 1:
        yield Layout("one")
        yield Layout("deepspeed", zero_stage=3, offload="cpu")
        return
    yield Layout("ddp", replicate=many)
    yield Layout("fsdp", fsdp=many)
    if cluster.nodes > 1 and each > 1:
        yield Layout("fsdp", replicate=cluster.nodes, fsdp=each)
    for size in (2, 4, WIDEST):
        fits = size <= each and many % size == 0
        if fits and not adapted and shape.heads % size == 0 and shape.key_heads % size == 0:
            yield Layout("fsdp", fsdp=many // size, tensor=size)
        if fits and shape.heads % size == 0 and row_tokens // size >= 1024:
            yield Layout("fsdp", fsdp=many // size, context=size)
    for stage in (1, 2, 3):
        yield Layout("deepspeed", replicate=many, zero_stage=stage)
    yield Layout("fsdp", fsdp=many, offload="cpu")
    yield Layout("deepspeed", replicate=many, zero_stage=3, offload="cpu")
