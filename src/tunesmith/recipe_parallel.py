"""The section `parallel` of a recipe: what several processes that train one model together share."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from tunesmith import recipe_fsdp, recipe_zero
from tunesmith.component import Section, name_of, spell

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

Size = Annotated[int, Field(gt=0)]

ELEMENTWISE = (
    "adamw",
    "ademamix",
    "lion",
    "schedule_free",
)  # a part of a weight is updated as the whole is, and torch does it
BY_LONGEST = ("dynamic", "longrope")  # rotary positions that depend on the longest sequence of a row
PEFT = "https://github.com/huggingface/peft/issues/3044"  # tensor parallelism of what is not LoRA
MISSING = {  # what is asked for by these words of other tools, why it is not here, and what is
    "expert": "experts are shared out as all weights are: say parallel.strategy=fsdp",
    "pipeline": "transformers' pipeline parallelism has no backward pass: say parallel.strategy=fsdp",
}


class Parallel(Section):
    """Training by several processes, as torchrun starts them. One alone trains the same, and shares nothing."""

    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    """What the processes share. ddp: the rows of a step, each with a whole model. fsdp: the model's weights too, with
    the gradients and the optimizer's state of those that are trained (torch's FSDP2). deepspeed: what `zero_stage`
    says. auto: ddp where the plan says that a whole model with its states fits on each device, else fsdp."""
    fsdp: Size | None = None
    """Processes that one copy of the model is shared out to, mostly those of one machine. None: all, or what
    `replicate` leaves."""
    replicate: Size | None = None
    """Copies of the model (HSDP), whose processes share the rows. None: one, or what `fsdp` leaves."""
    context: Size = 1
    """Processes that share each row, a piece of its tokens each, for rows longer than one device holds; they exchange
    heads in attention, whose number it divides."""
    tensor: Size = 1
    """Processes that compute the products of each layer together, each with a part of their weights (tensor
    parallelism). They have the same rows; `fsdp` counts groups of them."""
    fsdp_config: dict[str, Any] | str | None = None
    """What accelerate's or transformers' FSDP is told, or a file of it (JSON or YAML, also one of accelerate's own).
    What it says of the recipe's values has to agree with them, and what is done otherwise here is refused."""
    zero_stage: Literal[1, 2, 3] | None = None
    """What DeepSpeed shares. 1: the optimizer's state; 2: gradients too; 3: weights too. None: what `deepspeed_config`
    says, or 2."""
    offload: Literal["cpu", "nvme"] | None = None
    """Where DeepSpeed keeps the optimizer's state: in the host's memory, or at stage 3 in files on a disk. With either,
    stage 3 keeps its parts of weights in the host's memory. None: what `deepspeed_config` says, or on the device."""
    nvme_path: str | None = None
    """Folder on a disk for these files, which are removed when the run ends. None: what `deepspeed_config` says, or the
    folder that the run's own is in."""
    deepspeed_config: str | None = None
    """A file of DeepSpeed's own options (JSON). What it says of the recipe's values has to agree with them; "auto" is
    theirs."""

    @model_validator(mode="before")
    @classmethod
    def _says_what_is_missing(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for word in value.keys() & MISSING.keys():
                raise ValueError(f"{word}={value[word]} cannot be had: {MISSING[word]}")
        return value

    @model_validator(mode="after")
    def _sizes_are_of_a_model_that_is_shared(self) -> "Parallel":
        for name in ("fsdp", "replicate", "fsdp_config"):
            if getattr(self, name) is not None and self.strategy != "fsdp":
                raise ValueError(
                    f"{name}={getattr(self, name)} is for parallel.strategy=fsdp, and this is {self.strategy}"
                )
        for name in ("zero_stage", "offload", "nvme_path", "deepspeed_config"):
            if getattr(self, name) is not None and self.strategy != "deepspeed":
                raise ValueError(
                    f"{name}={getattr(self, name)} is for parallel.strategy=deepspeed, and this is {self.strategy}"
                )
        return self

    @property
    def sharers(self) -> int:
        """The processes that have the same rows."""
        return self.context * self.tensor

    @property
    def shares_weights(self) -> bool:
        """Whether several processes would share the weights."""
        return self.strategy == "fsdp"


def problem_among(recipe: "Recipe", number: int) -> str | None:
    """Why so many processes cannot train a resolved recipe together, and what can be done; None where they can."""
    parallel, own = recipe.parallel, not type(recipe.adapter).beside
    if number > 1 and recipe.data.streaming:
        return f"data.streaming=true: {number} processes cannot share a stream yet: start one, or leave it out"
    if number > 1 and recipe.train.release_gradients:
        return f"train.release_gradients=true updates before gradients of {number} processes are added: leave it out"
    if number > parallel.tensor > 1 and own and parallel.strategy == "ddp":
        return (
            f"parallel.tensor={parallel.tensor}: {number} processes hold copies of weights that are trained: say "
            "parallel.strategy=fsdp, or use adapter=lora"
        )
    return problem(recipe)


def problem(recipe: "Recipe") -> str | None:
    """Why a recipe's rows or its model's weights cannot be shared out, and what can be done; None where they can."""
    if recipe.parallel.context > 1 and (reason := problem_of_pieces(recipe)):
        return reason
    if recipe.parallel.tensor > 1 and (reason := _problem_of_products(recipe)):
        return reason
    if recipe.parallel.strategy == "deepspeed":
        return recipe_zero.problem(recipe)
    if not recipe.parallel.shares_weights:
        return None
    model, train, own = recipe.model, recipe.train, not type(recipe.adapter).beside
    held = model.quantization and name_of(model.quantization)
    refused = {
        f"model.quantization={held}": held not in (None, *recipe_zero.IN_PARTS),
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
    return recipe_fsdp.problem(recipe)


def problem_of_pieces(recipe: "Recipe") -> str | None:
    """Why the rows of a recipe cannot lie in pieces, and what can be done; None where they can."""
    option, model, train = f"parallel.context={recipe.parallel.context}", recipe.model, recipe.train
    refused = {
        "train.row_tokens=auto": train.row_tokens == "auto",
        "data.streaming=true": recipe.data.streaming,
        f"train.neftune_noise_alpha={train.neftune_noise_alpha}": train.neftune_noise_alpha is not None,
        f"train.router_aux_loss_coef={train.router_aux_loss_coef}": train.router_aux_loss_coef is not None,
        f"train.shifted_sparse_attention={train.shifted_sparse_attention}": train.shifted_sparse_attention is not None,
        f"model.rope_scaling.rope_type={model.rope_scaling.rope_type}": model.rope_scaling.rope_type in BY_LONGEST,
        "train.transformers.torch_compile": bool(train.transformers.get("torch_compile")),
    }
    for said, wanted in refused.items():
        if wanted:
            return f"{said} needs whole rows, which {option} cuts into pieces: leave one out"
    if recipe.parallel.strategy == "deepspeed":
        return f"{option} does not go with parallel.strategy=deepspeed, which counts a row for each process: say fsdp"
    if type(recipe.objective).encodes:
        return f"{option} cuts packed rows, and an encoder and a decoder have none: leave it out"
    if type(recipe.adapter).virtual:
        return (
            f"adapter={name_of(recipe.adapter)} puts tokens before every row, which {option} cuts into pieces: use "
            "adapter=lora"
        )
    if recipe.objective.teaching() is not None and not recipe.teaches_once():
        return (
            f"teacher.compute={recipe.teacher.compute} has the teacher read whole rows in every step, and {option} "
            "cuts them into pieces: set objective.top_k, and teacher.compute=once"
        )
    return None


def _problem_of_products(recipe: "Recipe") -> str | None:
    """Why the products of a recipe's model cannot be cut, and what can be done; None where they can."""
    parallel, model, train, own = recipe.parallel, recipe.model, recipe.train, not type(recipe.adapter).beside
    options = spell(recipe.adapter)
    refused = {
        f"parallel.strategy={parallel.strategy}": (parallel.strategy == "deepspeed", "say parallel.strategy=fsdp"),
        f"parallel.context={parallel.context}": (parallel.context > 1, "leave one out"),
        f"adapter={name_of(recipe.adapter)}": (
            name_of(recipe.adapter) not in ("full", "lora"),
            f"use adapter=full or lora, or parallel.strategy=fsdp (peft cuts LoRA alone: {PEFT})",
        ),
        f"adapter.lora_dropout={options.get('lora_dropout')}": (bool(options.get("lora_dropout")), "set it to 0"),
        "adapter.use_dora=true": (bool(options.get("use_dora")), "leave it out, or use parallel.strategy=fsdp"),
        "adapter.lora_bias=true": (bool(options.get("lora_bias")), "leave it out, or use parallel.strategy=fsdp"),
        f"optimizer={name_of(recipe.optimizer)}": (
            own and name_of(recipe.optimizer) != "adamw",
            "use adamw, or parallel.strategy=fsdp",
        ),
        f"objective={name_of(recipe.objective)}": (type(recipe.objective).encodes, "use parallel.strategy=ddp"),
        f"model.quantization={model.quantization and name_of(model.quantization)}": (
            model.quantization is not None,
            "leave one out",
        ),
        f"model.frozen_dtype={model.frozen_dtype}": (model.frozen_dtype is not None, "leave one out"),
        f"model.dropout={model.dropout}": (bool(model.dropout), "set it to 0"),
        "train.row_tokens=auto": (train.row_tokens == "auto", "set a number"),
        "data.streaming=true": (recipe.data.streaming, "leave one out"),
        "eval.prompts": (bool(recipe.eval.prompts), "leave one out"),
        f"train.fp16={str(train.fp16).lower()}": (train.fp16, "use bf16"),
        "train.compile=true": (train.compile is True, "leave it out"),
        "train.transformers.torch_compile": (bool(train.transformers.get("torch_compile")), "leave one out"),
        f"train.neftune_noise_alpha={train.neftune_noise_alpha}": (
            train.neftune_noise_alpha is not None,
            "leave one out",
        ),
        f"train.ema_decay={train.ema_decay}": (own and train.ema_decay is not None, "leave one out"),
        f"train.router_aux_loss_coef={train.router_aux_loss_coef}": (
            train.router_aux_loss_coef is not None,
            "leave one out",
        ),
    }
    for said, (wanted, instead) in refused.items():
        if wanted:
            return f"{said} does not go with parallel.tensor={parallel.tensor}, which cuts layers' products: {instead}"
    return None
