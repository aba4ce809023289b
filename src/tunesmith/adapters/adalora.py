"""Low-rank updates whose ranks are shared out among layers while they are trained (arXiv 2303.10512), by peft."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.adapters._peft import Beside
from tunesmith.errors import RecipeError
from tunesmith.seams import Companion

if TYPE_CHECKING:
    import torch

UNKNOWN = 1 << 40  # steps, until the run says how many they are
MEANS = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # what peft's allocator keeps of each parameter
PATTERN = "rank_pattern"


class AdaLoRA(Beside):
    """peft's AdaLoRA: every layer begins with init_r ranks, of which the least important are dropped."""

    learning_rate: ClassVar[float] = 2e-3
    kind: ClassVar[str] = "AdaLoraConfig"
    reads_gradients: ClassVar[bool] = True

    init_r: Annotated[int, Field(gt=0)] = 12
    """Rank of each update at first."""
    target_r: Annotated[int, Field(gt=0)] = 8
    """Rank of an update in the end, on average."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32
    """Scale of the update: lora_alpha / init_r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the update's inputs that are zeroed in training."""
    tinit: Annotated[float, Field(ge=0)] = 0.1
    """Steps before the first rank is dropped; below 1, a fraction of all steps."""
    tfinal: Annotated[float, Field(ge=0)] = 0.3
    """Steps after the last rank is dropped; below 1, a fraction of all steps."""
    deltaT: Annotated[int, Field(gt=0)] = 1  # noqa: N815  # peft's name
    """Steps between two choices of what is dropped."""
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """How much of the mean importance of a weight is from before a step."""
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """The same of how much its importance varies."""
    orth_reg_weight: Annotated[float, Field(ge=0)] = 0.5
    """How much the update's vectors are kept at right angles; its gradient is added after gradients were clipped."""

    def options(self, model: Any) -> dict[str, Any]:
        """The options of peft's AdaLoraConfig, whose steps are not known yet."""
        names = ("init_r", "target_r", "lora_alpha", "lora_dropout", "deltaT", "beta1", "beta2", "orth_reg_weight")
        return {name: getattr(self, name) for name in names} | {"total_step": UNKNOWN}

    def companion(self, model: Any, num_steps: int) -> Companion:
        """What drops the ranks. Raises RecipeError when a run of so many steps leaves none to do it in."""
        first, last = (int(one * num_steps) if one < 1 else int(one) for one in (self.tinit, self.tfinal))
        if first >= num_steps - last:
            raise RecipeError(
                f"adapter.tinit and adapter.tfinal: of {num_steps} steps, {first} at first and {last} in the end leave "
                "none in which ranks are dropped"
            )
        config = model.peft_config[model.active_adapter]
        config.total_step, config.tinit, config.tfinal = num_steps, first, last
        return Ranks(model, config)


class Ranks(Companion):
    """The schedule of ranks: peft's own, told of every step, and what a run that goes on needs of it."""

    def __init__(self, model: Any, config: Any) -> None:
        self.model, self.config = model, config
        self.allocator = model.base_model.rankallocator
        self.pattern: dict[str, list[bool]] | None = None  # which ranks are left; None: not chosen yet

    def stepping(self, step: int) -> None:
        """Add the gradient of orth_reg_weight times the mean of |P P' - 1| over all P (A, and B transposed)."""
        import torch

        found = [(name, one) for name, one in self.model.named_parameters() if "lora_A." in name or "lora_B." in name]
        with torch.no_grad():
            for name, one in found:
                rows = one if "lora_A." in name else one.T
                beyond = rows @ rows.T - torch.eye(len(rows), dtype=one.dtype, device=one.device)
                size = torch.linalg.matrix_norm(beyond)
                slope = (beyond @ rows) * (2 * self.config.orth_reg_weight / len(found) / size.clamp(min=1e-12))
                one.grad.add_(slope if "lora_A." in name else slope.T)

    def stepped(self, step: int) -> None:
        """Drop what is due at a step."""
        self.config.rank_pattern = self.pattern
        self.model.base_model.update_and_allocate(step)
        self.pattern, self.config.rank_pattern = self.config.rank_pattern, None  # checkpoints have every rank

    @contextmanager
    def settled(self) -> Iterator[None]:
        """The options say which ranks are left, and what is saved has these alone, as has the model here.

        A mean of weights has the dropped ones as they were before: whoever puts it there takes it back.
        """
        if self.pattern is not None:
            self.allocator.mask_using_rank_pattern(self.model.base_model.model, self.pattern)
            # peft takes an empty matrix for a damaged one: where none is left, one of 0
            self.config.rank_pattern = {
                name: [*kept] if any(kept) else [True, *kept[1:]] for name, kept in self.pattern.items()
            }
        try:
            yield
        finally:
            self.config.rank_pattern = None

    def write(self, folder: Path) -> tuple[str, ...]:
        """Draw the ranks of all layers."""
        from tunesmith.engine.ranks_picture import ranks_picture

        if self.pattern is None:
            return ()
        ranks = {name: sum(kept) for name, kept in self.pattern.items()}
        ranks_picture(ranks, folder / "ranks.png")
        least, most, mean = min(ranks.values()), max(ranks.values()), sum(ranks.values()) / len(ranks)
        return (f"ranks: from {least} to {most}, {mean:.1f} on average, in {folder / 'ranks.png'}",)

    def state(self) -> "dict[str, torch.Tensor]":
        """The means of importance, and which ranks are left."""
        import torch

        means = {f"{kind}/{name}": one for kind in MEANS for name, one in getattr(self.allocator, kind).items()}
        kept = {f"{PATTERN}/{name}": torch.tensor(one) for name, one in (self.pattern or {}).items()}
        return means | kept

    def load(self, state: "Mapping[str, torch.Tensor]") -> None:
        """Take up what `state` gave, on the devices of the parameters."""
        places = {name: one.device for name, one in self.model.base_model.model.named_parameters()}
        found: dict[str, dict[str, Any]] = {kind: {} for kind in (*MEANS, PATTERN)}
        for key, one in state.items():
            kind, _, name = key.partition("/")
            found[kind][name] = one.tolist() if kind == PATTERN else one.to(places[name])
        self.pattern = found.pop(PATTERN) or None
        for kind, means in found.items():
            setattr(self.allocator, kind, means)
