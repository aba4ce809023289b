"""FSDP in a recipe: words of accelerate or transformers, each honoured, what is done anyway, or refused."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.recipe_parallel import Parallel

OTHERS = {  # names that accelerate's files, its plugin and transformers have for one thing
    "fsdp_version": "version",
    "offload_params": "cpu_offload",
    "transformer_cls_names_to_wrap": "transformer_layer_cls_to_wrap",
}
DONE: dict[str, tuple[tuple[Any, ...], str]] = {  # what is done anyway, and what to say in place of anything else
    "version": ((2,), "torch's FSDP2 is what shares out: say 2"),
    "sharding_strategy": (
        ("full_shard", 1),
        "say reshard_after_forward=false for shard_grad_op, parallel.replicate for hybrid_shard, and "
        "parallel.strategy=ddp for no_shard",
    ),
    "cpu_offload": ((False,), "say parallel.strategy=deepspeed and parallel.offload=cpu"),
    "cpu_ram_efficient_loading": ((False,), "each process loads the whole model before it gives up parts: say false"),
    "sync_module_states": ((True, False), ""),  # all of them load the same
    "state_dict_type": (
        ("sharded_state_dict",),
        "checkpoints are written in parts, and final/ is a whole model: say SHARDED_STATE_DICT",
    ),
    "auto_wrap_policy": (("transformer_based_wrap",), "layers are what is gathered: say TRANSFORMER_BASED_WRAP"),
    "min_num_params": ((0,), "layers are what is gathered, of any size: leave it out"),
    "backward_prefetch": (("backward_pre", 1), "the next layer is gathered before a backward pass: say BACKWARD_PRE"),
    "forward_prefetch": ((False,), "layers are gathered in the order of the pass: say false"),
    "use_orig_params": ((True,), "FSDP2 always does: say true"),
    "limit_all_gathers": ((True,), "FSDP2 always does: say true"),
    "xla": ((False,), "TPUs are not trained on here: say false"),
    "reshard_after_forward": ((True, False), "that is a word of FSDP1: say true or false"),
}
SAME = {  # options of `train`
    "activation_checkpointing": "activation_checkpointing",
    "activation_checkpointing_offload": "activation_offload",
}
HONOURED = ("transformer_layer_cls_to_wrap",)  # where the model is known
DTYPES = {
    "bf16": "bfloat16",
    "torch.bfloat16": "bfloat16",
    "fp32": "float32",
    "no": "float32",
    "torch.float32": "float32",
    "fp16": "float16",
    "torch.float16": "float16",
}


def said(parallel: "Parallel") -> dict[str, Any]:
    """What `parallel.fsdp_config` says, by transformers' names.

    Raises:
        ValueError: a file is missing, or holds no mapping.
    """
    return {name: value for name, (_, value) in _given(parallel).items()}


def _given(parallel: "Parallel") -> dict[str, tuple[str, Any]]:
    """The same, each with its own name, which in accelerate's files begins with `fsdp_`."""
    found = parallel.fsdp_config
    found = _read(Path(found).expanduser()) if isinstance(found, str) else (found or {})
    if isinstance(inner := found.get("fsdp_config"), Mapping):  # one of accelerate's files
        found = {**inner, **{name: found[name] for name in found.keys() & {"mixed_precision"}}}
    short = {own: own.removeprefix("fsdp_") if own not in OTHERS else own for own in found}
    return {OTHERS.get(name, name): (own, _plain(found[own])) for own, name in short.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError:
        raise ValueError(f"parallel.fsdp_config: there is no file {path}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"parallel.fsdp_config: {path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise ValueError(f"parallel.fsdp_config: {path} holds no mapping of options: {str(found)[:60]}")
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it: these files also hold "true" and "2"."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if isinstance(value, str):
        return int(value) if value.isdigit() else words.get(value.lower(), value)
    return value


def reshards(parallel: "Parallel") -> bool:
    """Whether a layer's weights are dropped between its forward and its backward pass."""
    return said(parallel).get("reshard_after_forward") in (None, True)


def layers(parallel: "Parallel") -> tuple[str, ...]:
    """The names of the classes that are to be gathered as wholes; none where it is left to the model."""
    found = said(parallel).get("transformer_layer_cls_to_wrap") or ()
    return tuple(one.strip() for one in found.split(",")) if isinstance(found, str) else tuple(found)


def problem(recipe: "Recipe") -> str | None:
    """Why what is said of FSDP is not to be had, or is not what the recipe says; None where it is."""
    for name, (word, value) in _given(recipe.parallel).items():
        option = f"parallel.fsdp_config: {word}"
        if value is None:
            continue
        if name in ("mixed_precision", "mixed_precision_policy"):
            if (reason := next(_of_precision(recipe, option, name, value), None)) is not None:
                return reason
        elif name in SAME:
            own = getattr(recipe.train, SAME[name])
            if value != own:
                return (
                    f"{option}={value}: train.{SAME[name]}={own} is in the recipe: say the same, or leave it out here"
                )
        elif name in DONE:
            taken, instead = DONE[name]
            if (value.lower() if isinstance(value, str) else value) not in taken:
                return f"{option}={value}: {instead}"
        elif name not in HONOURED:
            return f"{option}={value} is no option of FSDP that is known here: leave it out"
    return None


def _of_precision(recipe: "Recipe", option: str, name: str, value: Any) -> Iterator[str]:
    """What is said of dtypes that is otherwise here: autocast's, over weights and sums of gradients in float32."""
    own: dict[str, Any] = dict.fromkeys(("reduce_dtype", "buffer_dtype", "output_dtype"), "float32")
    computed = {None: None, True: "bfloat16", False: "float32"}[recipe.train.bf16]  # None: the device says it
    own |= {"param_dtype": computed, "cast_forward_inputs": False}
    parts = ("param_dtype", "reduce_dtype", "buffer_dtype")[: 3 if name == "mixed_precision_policy" else 1]
    given = value if isinstance(value, Mapping) else dict.fromkeys(parts, value or "no")  # of which YAML makes false
    for part, theirs in given.items():
        where = f"{option}.{part}" if isinstance(value, Mapping) else option
        if part not in own:
            yield f"{where}={theirs} is no option of FSDP that is known here: leave it out"
        elif None not in (theirs, own[part]) and DTYPES.get(str(theirs), theirs) != own[part]:
            what = f"train.bf16={recipe.train.bf16} for this recipe makes" if part == "param_dtype" else "it is always"
            yield f"{where}={theirs}: {what} {part}={own[part]} here: make them the same, or leave it out"
