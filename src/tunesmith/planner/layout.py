"""How a model and its rows are laid over devices, and the recipe's options for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.planner.devices import Cluster
from tunesmith.planner.shapes import Shape
from tunesmith.recipe import Recipe
from tunesmith.recipe_parallel import Parallel
from tunesmith.recipe_zero import NVME

WIDEST = 8  # devices that tensor parallelism or context parallelism is tried over
SHORTEST_PIECE = 1024  # tokens of a row that each has


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
    offload: str | None = None
    sequence: bool = False  # planned as torchtitan has it, to compare with its figures: see spread.py

    @property
    def devices(self) -> int:
        """How many it takes."""
        return self.replicate * self.fsdp * self.tensor * self.context

    @property
    def rows(self) -> int:
        """How many packed rows are in a micro-step together."""
        return self.replicate * self.fsdp

    @property
    def gathers(self) -> bool:
        """Whether weights are divided and gathered layer by layer."""
        return self.strategy == "fsdp" or self.zero_stage == 3

    @property
    def rank(self) -> int:
        """How simple it is, 0 the simplest: whole models, weights in parts, copies of these, cut rows or layers, ZeRO.

        DeepSpeed is another package, and what it offloads waits for the host, or for a disk: each is for what nothing
        before fits.
        """
        if self.strategy == "deepspeed":
            return 4 + (None, "cpu", NVME).index(self.offload)
        if self.tensor * self.context > 1:
            return 3
        return 0 if self.strategy in ("one", "ddp") else 1 + (self.replicate > 1)

    def shares(self) -> tuple[int, int, int]:
        """Over how many devices weights, gradients and state are divided, beside `tensor`."""
        if self.strategy == "fsdp":
            shards = self.fsdp * self.context
            return shards, shards, shards
        many = self.rows * self.context
        return tuple(many if self.zero_stage >= stage else 1 for stage in (3, 2, 1))  # type: ignore[return-value]

    def options(self) -> dict[str, Any]:
        """What the section `parallel` of a recipe says for it."""
        if self.strategy == "one":
            return {}
        sizes = {
            "replicate": self.replicate if self.strategy == "fsdp" and self.replicate > 1 else None,
            "fsdp": self.fsdp if self.strategy == "fsdp" and self.replicate > 1 else None,
            "tensor": self.tensor if self.tensor > 1 else None,
            "context": self.context if self.context > 1 else None,
            "zero_stage": self.zero_stage or None,
            "offload": self.offload,
        }
        return {"strategy": self.strategy} | {name: size for name, size in sizes.items() if size is not None}

    def told(self, recipe: Recipe) -> Recipe:
        """A recipe that is laid out so; a file of DeepSpeed's options stays where DeepSpeed does."""
        file = recipe.parallel.deepspeed_config if self.strategy == "deepspeed" else None
        place = recipe.parallel.nvme_path if self.offload == NVME else None
        options = {**self.options(), "deepspeed_config": file, "nvme_path": place}
        return recipe.model_copy(update={"parallel": Parallel(**options)})

    def words(self, recipe: Recipe) -> tuple[str, ...]:
        """The words that have a recipe laid out so: what it says otherwise itself is taken back."""
        if self.strategy == "one":
            return ()
        wanted, has, said = dict(self.told(recipe).parallel), dict(recipe.parallel), self.options()
        said |= {name: value for name, value in wanted.items() if name not in said and has[name] != value}
        return tuple(f"parallel.{name}={'null' if one is None else one}" for name, one in said.items())

    def __str__(self) -> str:
        sizes = {"tp ": self.tensor, "cp ": self.context}
        cut = [f"{word}{size}" for word, size in sizes.items() if size > 1]
        name = f"zero-{self.zero_stage}" if self.zero_stage else self.strategy
        if self.strategy == "fsdp":
            name = f"hsdp {self.replicate}x{self.fsdp}" if self.replicate > 1 else f"fsdp {self.fsdp}"
        elif cut and self.replicate > 1:
            name = f"{name} {self.replicate}"
        elif cut:
            name = ""
        shown = " ".join([*([name] if name else []), *cut])
        return f"{shown}, offload {self.offload}" if self.offload else shown


def layouts(cluster: Cluster, shape: Shape, row_tokens: int) -> Iterator[Layout]:
    """The layouts that are compared on some machines, as far as the model's sizes go; none where there is one device.

    What of them a recipe can be trained in is for `recipe_parallel.problem` to say.
    """
    many, each = cluster.devices, cluster.each
    if many == 1:
        yield Layout("one")
        return
    yield Layout("ddp", replicate=many)
    yield Layout("fsdp", fsdp=many)
    if cluster.nodes > 1 and each > 1:
        yield Layout("fsdp", replicate=cluster.nodes, fsdp=each)
    sizes = [size for size in (2, 4, WIDEST) if size <= each and many % size == 0]
    for size in sizes:
        if not any(one % size for one in (shape.heads, shape.key_heads, shape.inner)):
            if size == many:
                yield Layout("ddp", tensor=size)
            else:
                yield Layout("fsdp", fsdp=many // size, tensor=size)
        if shape.heads % size == 0 and row_tokens // size >= SHORTEST_PIECE:
            yield Layout("ddp", replicate=many // size, context=size)
            yield Layout("fsdp", fsdp=many // size, context=size)
    for stage, offload in ((1, None), (2, None), (2, "cpu"), (3, None), (3, "cpu"), (3, NVME)):
        yield Layout("deepspeed", replicate=many, zero_stage=stage, offload=offload)
