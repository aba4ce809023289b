"""DeepSpeed in a recipe: its file of options, what has to agree with the recipe, and what it is told in the end."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.component import name_of
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.recipe_parallel import Parallel

STATES = {"adamw": 2, "ademamix": 3, "lion": 1}  # numbers that an optimizer keeps of each weight
ELEMENTWISE = tuple(STATES)  # DeepSpeed hands an optimizer pieces of flattened weights
OURS = ("optimizer", "scheduler", "bf16", "fp16", "torch_autocast")  # sections whose work the recipe's own parts do
OFFLOADED = ("offload_optimizer", "offload_param")
IN_PARTS = ("bnb_4bit",)  # quantizations whose weights are plain tensors in parameters, which can be cut
NVME = "nvme"
OF_STATE, OF_WEIGHTS = (f"zero_optimization.{name}" for name in OFFLOADED)
READ: dict[str, tuple[type | tuple[type, ...], tuple[str, ...]]] = {  # what is read here of a file, by what it must be
    "a mapping": (dict, ("zero_optimization", OF_STATE, OF_WEIGHTS, "optimizer", "optimizer.params", *OURS[1:])),
    "text": (str, ("optimizer.type", f"{OF_STATE}.device", f"{OF_STATE}.nvme_path", f"{OF_WEIGHTS}.device")),
    "a number": (
        (int, float),
        ("zero_optimization.stage", "zero_optimization.sub_group_size", f"{OF_STATE}.buffer_count"),
    ),
}
AT_ONCE = 100_000_000  # weights that are read from files, updated and written together, where nobody says how many
NO_WEIGHTS_IN_FILES = (
    "weights that wait in files are out of sight of checkpoints here: say offload_param.device=cpu, and nvme of "
    "offload_optimizer alone (https://www.deepspeed.ai/docs/config-json/#parameter-offloading)"
)


def said(parallel: "Parallel") -> dict[str, Any]:
    """What the file of DeepSpeed's options says, without what is "auto" or null; nothing where there is none.

    Raises:
        ValueError: it is missing, or no JSON mapping, or a value that is read here is of another kind.
    """
    if parallel.deepspeed_config is None:
        return {}
    path = Path(parallel.deepspeed_config).expanduser()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"parallel.deepspeed_config: there is no file {path}") from None
    except ValueError as error:
        raise ValueError(f"parallel.deepspeed_config: {path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"parallel.deepspeed_config: {path} holds no mapping of options: {str(found)[:60]}")
    found = _without_open(found)
    for word, (kind, places) in READ.items():
        for place in places:
            value = _given(found, place)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise ValueError(f"parallel.deepspeed_config: {place} in {path} must be {word} (it was {value!r})")
    return found


def _without_open(value: Any) -> Any:
    """A file's options without those that it leaves open."""
    if not isinstance(value, dict):
        return value
    return {name: _without_open(one) for name, one in value.items() if one not in ("auto", None)}


def stage(parallel: "Parallel") -> int:
    """The stage of ZeRO."""
    theirs: int | None = _given(said(parallel), "zero_optimization.stage")
    return parallel.zero_stage or (2 if theirs is None else theirs)


def offload(parallel: "Parallel") -> str | None:
    """Where the optimizer's state is kept, if not on the device."""
    device: str | None = _given(said(parallel), f"{OF_STATE}.device")
    return parallel.offload or (None if device == "none" else device)


def in_files(parallel: "Parallel") -> bool:
    """Whether the optimizer's state is kept in files."""
    return offload(parallel) == NVME


def nvme_path(parallel: "Parallel") -> str | None:
    """The folder of these files, if it is said."""
    theirs: str | None = _given(said(parallel), f"{OF_STATE}.nvme_path")
    return parallel.nvme_path or theirs


def problem(recipe: "Recipe") -> str | None:
    """Why DeepSpeed cannot train a recipe, and what can be done; None where it can."""
    own = not type(recipe.adapter).beside
    level = stage(recipe.parallel)
    if level not in (1, 2, 3):
        return (
            f"parallel.deepspeed_config: zero_optimization.stage={level} shares nothing: say 1, 2 or 3, or "
            "parallel.strategy=ddp"
        )
    if reason := _problem_of_files(recipe.parallel, level):
        return reason
    refused = {
        "train.row_tokens=auto": recipe.train.row_tokens == "auto",
        f"train.fp16={str(recipe.train.fp16).lower()}": recipe.train.fp16,
        "train.transformers.torch_compile": bool(recipe.train.transformers.get("torch_compile")),
        "train.release_gradients=true": recipe.train.release_gradients,
        f"adapter={name_of(recipe.adapter)}": type(recipe.adapter).reads_gradients,
    }
    for option, wanted in refused.items():
        if wanted:
            return f"{option} does not go with parallel.strategy=deepspeed: leave one out"
    for option, wanted in _of_weights(recipe, own).items():
        if wanted and level == 3:
            return (
                f"{option} does not go with zero_stage={level}, which cuts weights into parts: say 2, or leave it out"
            )
    if type(recipe.objective).encodes:
        return (
            "parallel.strategy=deepspeed: a model of an encoder and a decoder is not tried with it: use "
            "parallel.strategy=ddp"
        )
    if name_of(recipe.optimizer) not in ELEMENTWISE:
        return (
            f"optimizer={name_of(recipe.optimizer)} needs whole weights or their means, and "
            f"parallel.strategy=deepspeed gives it pieces of flattened ones: use {', '.join(ELEMENTWISE)}"
        )
    if level == 3 and own and "reference" in type(recipe.objective).needs and recipe.reference.compute == "step":
        return "reference.compute=step needs a whole second model, and zero_stage=3 shares one out: say once"
    return next(_disagreements(recipe, said(recipe.parallel)), None)


def _problem_of_files(parallel: "Parallel", level: int) -> str | None:
    """Why nothing can be kept in files, and what can be done; None where it can, or is not to be."""
    if _given(said(parallel), f"{OF_WEIGHTS}.device") == NVME:
        return (
            f"parallel.deepspeed_config: zero_optimization.offload_param.device={NVME} cannot be had: "
            f"{NO_WEIGHTS_IN_FILES}"
        )
    if parallel.nvme_path is not None and not in_files(parallel):
        return (
            f"parallel.nvme_path={parallel.nvme_path} is for parallel.offload={NVME}, and this is {offload(parallel)}: "
            "say that, or leave it out"
        )
    if in_files(parallel) and level != 3:
        return (
            f"parallel.offload={NVME}: DeepSpeed keeps state in files at parallel.zero_stage=3 alone, and this is "
            f"{level}: say 3, or offload=cpu"
        )
    return None


def _of_weights(recipe: "Recipe", own: bool) -> dict[str, bool]:
    """What does not go with weights in parts."""
    model = recipe.model
    held = model.quantization and name_of(model.quantization)
    return {
        "eval.prompts": bool(recipe.eval.prompts),
        f"model.quantization={held}": held not in (None, *IN_PARTS),
        f"model.frozen_dtype={model.frozen_dtype}": model.frozen_dtype is not None,
        f"train.ema_decay={recipe.train.ema_decay}": own and recipe.train.ema_decay is not None,
    }


def _given(config: Mapping[str, Any], path: str) -> Any:
    """The value at a path of a file of options; None where there is none."""
    found: Any = config
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _disagreements(recipe: "Recipe", config: Mapping[str, Any]) -> Iterator[str]:
    """What a file of options says that the recipe says otherwise."""
    train, optimizer, parallel = recipe.train, recipe.optimizer, recipe.parallel
    rate = optimizer.learning_rate
    same: dict[str, tuple[str, Any]] = {
        "train_micro_batch_size_per_gpu": ("train.per_device_train_batch_size", train.per_device_train_batch_size),
        "gradient_accumulation_steps": ("train.gradient_accumulation_steps", train.gradient_accumulation_steps),
        "gradient_clipping": ("train.max_grad_norm", train.max_grad_norm),
        "bf16.enabled": ("train.bf16", train.bf16),
        "torch_autocast.enabled": ("train.bf16", train.bf16),
        "fp16.enabled": ("train.fp16", train.fp16),
        "zero_optimization.stage": ("parallel.zero_stage", parallel.zero_stage),
        "optimizer.params.lr": ("optimizer.learning_rate", rate),
        "optimizer.params.weight_decay": ("optimizer.weight_decay", optimizer.weight_decay),
        "optimizer.params.eps": ("optimizer.epsilon", getattr(optimizer, "epsilon", None)),
        "optimizer.params.betas": ("optimizer.betas", list(getattr(optimizer, "betas", ())) or None),
    }
    ours = {OF_STATE: parallel.offload, OF_WEIGHTS: None if parallel.offload == NVME else parallel.offload}
    same |= {f"{section}.device": ("parallel.offload", one) for section, one in ours.items()}
    same[f"{OF_STATE}.nvme_path"] = ("parallel.nvme_path", parallel.nvme_path)
    for path, (option, value) in same.items():
        theirs = _given(config, path)
        if None not in (theirs, value) and theirs != value:
            yield _differ(recipe, path, theirs, option, value)
    kind = _given(config, "optimizer.type")
    if kind is not None and kind.lower() != name_of(optimizer):
        yield _differ(recipe, "optimizer.type", kind, "optimizer", name_of(optimizer))
    kind = _given(config, "scheduler.type")
    if kind is not None:
        yield (
            f"parallel.deepspeed_config: scheduler.type={kind} in {parallel.deepspeed_config}, and the recipe's "
            f"schedule is train.lr_scheduler_type={train.lr_scheduler_type}: leave scheduler out of the file"
        )


def _differ(recipe: "Recipe", path: str, theirs: Any, option: str, value: Any) -> str:
    return (
        f"parallel.deepspeed_config: {path}={theirs} in {recipe.parallel.deepspeed_config}, and {option}={value} for "
        'this recipe: make them the same, or say "auto" there'
    )


def _sizes(width: int) -> dict[str, int]:
    """Numbers of values that go round at once, as transformers fills them in where a file says "auto"."""
    return {
        "reduce_bucket_size": width * width,
        "stage3_prefetch_bucket_size": int(0.9 * width * width),
        "stage3_param_persistence_threshold": 10 * width,
    }


def _offloaded(recipe: "Recipe", zero: Mapping[str, Any], swap: Path | None) -> dict[str, Any]:
    """What DeepSpeed is told of what leaves the device; `swap` is the folder of a process's files.

    Where state is in files, there is a buffer for a weight, its gradient and each of its states, of a part of them at a
    time; and as many for a part that is read ahead, and for one that is still written.
    """
    place = recipe.parallel.offload
    if not in_files(recipe.parallel):
        names = OFFLOADED if zero["stage"] == 3 else OFFLOADED[:1]
        return {} if place is None else {name: zero.get(name, {}) | {"device": place} for name in names}
    found = dict(zero.get("offload_optimizer", {}))
    parts = 1 + bool(found.get("pipeline_read")) + bool(found.get("pipeline_write"))
    buffers = parts * (2 + STATES[name_of(recipe.optimizer)])
    found |= {"device": NVME, "nvme_path": str(swap), "buffer_count": max(buffers, int(found.get("buffer_count", 0)))}
    told = {"offload_optimizer": found, "sub_group_size": int(zero.get("sub_group_size", AT_ONCE))}
    weights = {"device": "cpu"} | zero.get("offload_param", {})
    return told if place is None else told | {"offload_param": weights}


def options(recipe: "Recipe", number: int, width: int | None = None, swap: Path | None = None) -> dict[str, Any]:
    """What DeepSpeed is told of a resolved recipe that so many processes train; `width` is the model's.

    `swap` is the folder of a process's files, where it keeps state in such.

    Raises:
        RecipeError: its file has the batch of a step otherwise.
    """
    train, parallel = recipe.train, recipe.parallel
    found = {name: value for name, value in said(parallel).items() if name not in OURS}
    batch = train.per_device_train_batch_size * train.gradient_accumulation_steps * number
    theirs = _given(found, "train_batch_size")
    if theirs not in (None, batch):
        raise RecipeError(
            _differ(recipe, "train_batch_size", theirs, f"the batch of a step on {number} processes", batch)
        )
    zero = _sizes(width or 1) | found.get("zero_optimization", {}) | {"stage": stage(parallel)}
    zero["memory_efficient_linear"] = False  # or torch.nn.functional.linear is another function from there on
    zero |= _offloaded(recipe, zero, swap)
    return found | {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": float(train.max_grad_norm),
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # the recipe's own optimizer, also in the host's memory
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": bool(train.bf16), "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }
