"""The section `parallel` of a recipe: what several processes that train one model together share."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from tunesmith import recipe_zero
from tunesmith.component import Section, name_of

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

Size = Annotated[int, Field(gt=0)]

ELEMENTWISE = (
    "adamw",
    "ademamix",
    "lion",
    "schedule_free",
)  # a part of a weight is updated as the whole is, and torch does it
MISSING = {  # what is asked for by these words of other tools, why it is not here, and what is
    "context": "torch's and accelerate's context parallelism (https://huggingface.co/docs/accelerate/concept_guides/"
    "context_parallelism) cuts one causal sequence into pieces, and packed rows are many: set "
    "train.activation_checkpointing=true, or train.activation_offload=true, for longer rows",
    "expert": "experts are shared out as all weights are: say strategy=fsdp",
    "pipeline": "transformers' pipeline parallelism has no backward pass: say strategy=fsdp",
    "tensor": "low-rank updates and the fused head read whole weights, and transformers' tensor parallelism holds "
    "parts of them: say strategy=fsdp",
}


class Parallel(Section):
    """Training by several processes, as torchrun starts them. One alone trains the same, and shares nothing."""

    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    """What the processes share. ddp: the rows of a step, each with a whole model. fsdp: the model's weights too, with
    the gradients and the optimizer's state of those that are trained (torch's FSDP2). deepspeed: what `zero_stage`
    says. auto: ddp."""
    fsdp: Size | None = None
    """Processes that one copy of the model is shared out to, mostly those of one machine. None: all, or what
    `replicate` leaves."""
    replicate: Size | None = None
    """Copies of the model (HSDP), whose processes share the rows. None: one, or what `fsdp` leaves."""
    zero_stage: Literal[1, 2, 3] | None = None
    """What DeepSpeed shares. 1: the optimizer's state; 2: gradients too; 3: weights too. None: what `deepspeed_config`
    says, or 2."""
    offload: Literal["cpu"] | None = None
    """Where DeepSpeed keeps the optimizer's state, and the parts of weights at stage 3: in the host's memory. None:
    what `deepspeed_config` says, or on the device."""
    deepspeed_config: str | None = None
    """A file of DeepSpeed's own options (JSON). What it says of the recipe's values has to agree with them; "auto" is
    theirs."""

    @model_validator(mode="before")
    @classmethod
    def _says_what_is_missing(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for word in value.keys() & MISSING.keys():
                raise ValueError(f"{word}={value[word]} cannot be had: {MISSING[word]}")
            if value.get("offload") == recipe_zero.NVME:
                raise ValueError(f"offload={value['offload']} cannot be had: {recipe_zero.NO_NVME}")
        return value

    @model_validator(mode="after")
    def _sizes_are_of_a_model_that_is_shared(self) -> "Parallel":
        for name in ("fsdp", "replicate"):
            if getattr(self, name) is not None and self.strategy != "fsdp":
                raise ValueError(f"{name}={getattr(self, name)} is for strategy=fsdp, and this is {self.strategy}")
        for name in ("zero_stage", "offload", "deepspeed_config"):
            if getattr(self, name) is not None and self.strategy != "deepspeed":
                raise ValueError(f"{name}={getattr(self, name)} is for strategy=deepspeed, and this is {self.strategy}")
        return self

    @property
    def shares_weights(self) -> bool:
        """Whether several processes would share the weights."""
        return self.strategy == "fsdp"


def problem(recipe: "Recipe") -> str | None:
    """Why the weights of a recipe's model cannot be shared out, and what can be done; None where they can."""
    if recipe.parallel.strategy == "deepspeed":
        return recipe_zero.problem(recipe)
    if not recipe.parallel.shares_weights:
        return None
    model, train, own = recipe.model, recipe.train, not type(recipe.adapter).beside
    refused = {
        f"model.quantization={model.quantization and name_of(model.quantization)}": model.quantization is not None,
        f"model.frozen_dtype={model.frozen_dtype}": model.frozen_dtype is not None,
        "train.row_tokens=auto": train.row_tokens == "auto",
        "eval.prompts": bool(recipe.eval.prompts),
        f"train.fp16={str(train.fp16).lower()}": train.fp16,
        "train.transformers.torch_compile": bool(train.transformers.get("torch_compile")),
        f"train.ema_decay={train.ema_decay}": own and train.ema_decay is not None,
    }
    for said, wanted in refused.items():
        if wanted:
            return (
                f"{said} does not go with parallel.strategy=fsdp, whose processes hold parts of weights: leave one out"
            )
    if type(recipe.objective).encodes:
        return "parallel.strategy=fsdp: a model of an encoder and a decoder is not shared out: use ddp"
    if own and name_of(recipe.optimizer) not in ELEMENTWISE:
        return (
            f"optimizer={name_of(recipe.optimizer)} updates whole weights, and parallel.strategy=fsdp gives it parts "
            f"of those that adapter={name_of(recipe.adapter)} trains: use {', '.join(ELEMENTWISE)}, or adapter=lora"
        )
    if own and "reference" in type(recipe.objective).needs and recipe.reference.compute == "step":
        return "reference.compute=step needs a whole second model, and parallel.strategy=fsdp shares one out: say once"
    return None
