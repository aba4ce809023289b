"""What a run depends on and libraries keep private or name in an old way, in one place."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode  # documented, and public nowhere

from tunesmith.engine.flat_parts import Place

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = [
    "FAILURES",
    "DispatchMode",
    "attention_of",
    "complete_gradients",
    "forget_conversions",
    "keep_gradients",
    "layer_kinds",
    "numbers_in_files",
    "one_device",
    "peft_warnings",
    "place_in_flat",
    "read_in",
    "routers_of",
    "short_file",
    "tensors_in",
    "watched",
]
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)  # of a model in a trial


# torch 2.13 warns that a norm over two axes of a mesh (parallel.fsdp and parallel.tensor) is summed along one and then
# along the other, as it has no public way to be told otherwise
logging.getLogger("torch.distributed.tensor._redistribute").addFilter(
    lambda record: not record.getMessage().startswith("While redistributing from")
)


@contextmanager
def peft_warnings() -> Iterator[None]:
    """Raise what peft only warns of when weights are missing; hide what it says of names and layers that are right."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*missing adapter keys")
        warnings.filterwarnings("ignore", "Specified to not (save|load) vera_A", UserWarning)  # save_projection=false
        # peft's own conversion of PiSSA cannot go with some options; engine/initial.py can
        warnings.filterwarnings("ignore", ".*path_initial_model_for_weight_conversion", UserWarning)
        # peft 0.21 misses what it wrote itself: names with lora_E of AdaLoRA, fused experts; goes when it does not
        warnings.filterwarnings("ignore", ".*keys did not match any targeted module", RuntimeWarning)
        # peft 0.21 asks transformers 5.23 by an old name (PeftModel.__init__); goes when it uses the new one
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        # peft 0.21's LNTuning, whose layers are norms, asks how many features a linear layer has (tuners_utils.py)
        warnings.filterwarnings("ignore", ".*Unsupported layer type.*Norm", UserWarning)
        yield


def attention_of(model: Any) -> str:
    """The name of the attention implementation that a model runs; transformers 5 has a setter and no getter."""
    return str(model.config._attn_implementation)


def forget_conversions(model: Any, kind: type) -> None:
    """Have transformers not undo, as it saves a model, the conversions by an operation that it was loaded with."""
    model._weight_conversions = [
        one
        for one in model._weight_conversions
        if not any(isinstance(op, kind) for op in getattr(one, "operations", ()))
    ]


def layer_kinds(model: Any) -> tuple[str, ...]:
    """The names of the classes of a transformers model's layers, which are not to be split; it has no public name."""
    return tuple(model._no_split_modules or ())


def routers_of(model: torch.nn.Module) -> tuple[tuple[torch.nn.Module, ...], int]:
    """The modules that choose a mixture's experts, and the place of their logits in what they give.

    transformers 5 says them in a private table of what a forward pass may record, which it is asked for by
    `output_router_logits`; that makes all logits of the head too.
    """
    tables = [getattr(one, "_can_record_outputs", None) or {} for one in model.modules()]
    said = next((table["router_logits"] for table in tables if "router_logits" in table), None)
    kind = getattr(said, "target_class", said)
    found = tuple(one for one in model.modules() if kind is not None and isinstance(one, kind))
    return found, getattr(said, "index", 0)


def one_device(args: "TrainingArguments") -> None:
    """Keep a process to its first GPU.

    transformers 5.23 wraps a model in nn.DataParallel when a process sees several GPUs, and has no option against it;
    its Trainer sets this same attribute for a model that is spread over GPUs (Trainer.__init__).
    """
    args._n_gpu = min(args.n_gpu, 1)


def int8_product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The int32 product of two int8 matrices; torch 2.10 to 2.13 have it under a private name alone."""
    return torch._int_mm(x, y)


def varlen_has_windows() -> bool:
    """Whether torch's variable-length attention takes a window: since torch 2.11. Goes when torch 2.12 is required."""
    return torch.__version__ >= "2.11"


def varlen(
    query: torch.Tensor,  # [Tq, H, D]
    key: torch.Tensor,  # [Tk, K, D]
    value: torch.Tensor,  # [Tk, K, D]
    query_offsets: torch.Tensor,
    key_offsets: torch.Tensor,
    most_queries: int,
    most_keys: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Causal attention by torch's variable-length kernel: [Tq, H, D]. The kernel has grouped heads in every version.

    Public since torch 2.10 with a bare `is_causal`; 2.11 has scale and window in its place; 2.12 wants grouped heads
    to be named. The two older forms go when torch 2.12 is required.
    """
    from torch.nn.attention.varlen import varlen_attn

    call: Any = varlen_attn
    bounds = (query_offsets, key_offsets, most_queries, most_keys)
    if torch.__version__ < "2.11":
        assert window is None, "varlen_has_windows is asked before"
        default = query.shape[-1] ** -0.5
        return call(query if scale == default else query * (scale / default), key, value, *bounds, is_causal=True)
    options: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    if torch.__version__ >= "2.12":
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    return call(query, key, value, *bounds, **options)


def place_in_flat(parameter: torch.Tensor, zero: Any, rank: int) -> Place | None:
    """Where the piece that this process has of a parameter lies in the tensors of DeepSpeed's optimizer.

    DeepSpeed 0.19 gives pieces publicly where weights lie in parts alone, and there without their places.
    """
    known: Any = parameter
    if hasattr(known, "ds_numel"):
        group, offset, length = zero.grad_position[zero.get_param_id(known)]
        start, flat = rank * length, zero.fp32_partitioned_groups_flat[group]
        length = min(length, known.ds_numel - start)  # the last ones are filled up
        return Place(flat, offset, start, length, group) if length > 0 else None
    mapping = known._hp_mapping
    if mapping is None:
        return None
    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
    inner, outer = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Place(flat, outer.start, inner.start, inner.numel, mapping.param_group_index)


def _is_in_files(zero: Any, group: int) -> bool:
    swaps = getattr(zero, "optimizer_swapper", None) is not None  # stages 1 and 2 know no files
    return swaps and bool(zero._swappable_optimizer_subgroup(group))


def numbers_in_files(zero: Any) -> int:
    """How many of the weights that this process updates DeepSpeed's optimizer keeps in files, with their states."""
    numels = zero.fp16_partitioned_groups_flat_numel
    return sum(int(number) for group, number in enumerate(numels) if _is_in_files(zero, group))


@contextmanager
def read_in(zero: Any, group: int, write: bool = False) -> Iterator[None]:
    """A block in which the memory has what DeepSpeed's optimizer keeps of a group of weights, be it in files.

    They are written anew at its end where it is said. DeepSpeed 0.19 gives states publicly one weight after the other,
    for each of which it reads the group (`deepspeed.utils.safe_get_local_optimizer_state`).
    """
    if not _is_in_files(zero, group):
        yield
        return
    zero._optimizer_states_and_gradient_swap_in(group)
    yield
    if write:
        zero._writeback_swap_state(group, write_opt_state=True, write_gradients=False)
    else:
        zero._release_swap_buffers(group)


def keep_gradients(zero: Any) -> None:
    """Have DeepSpeed's optimizer find the gradients of what it keeps in files in the memory, where they are anyway.

    DeepSpeed 0.19 would write those of 1 MB and more to files too, and read each into its place among others in a
    buffer. That place is at no multiple of 512 bytes for many sizes, so that a disk may refuse the read; DeepSpeed does
    not look, and the update would take what lay there before.
    """
    swapper = zero.optimizer_swapper

    def keep(parameter: Any, gradient_offsets: list[int], gradient_tensors: list[torch.Tensor]) -> None:
        here = (one.to("cpu") for one in gradient_tensors)
        swapper.swap_params_info[parameter.ds_id].unswapped_gradients.update(zip(gradient_offsets, here, strict=True))

    swapper.swap_out_gradients = keep


def complete_gradients(zero: Any) -> None:
    """Give zeros for the gradients of a step that no pass has made, of what DeepSpeed's optimizer keeps in files.

    DeepSpeed 0.19 reads gradients into a buffer, where without one of them something else would stay.
    """
    for group, offset, length in zero.grad_position.values():
        if _is_in_files(zero, group):
            flat = zero.fp32_partitioned_groups_flat[group]
            made = zero.optimizer_swapper.swap_params_info[flat.ds_id].unswapped_gradients
            if offset not in made:
                made[offset] = torch.zeros(length)


def short_file(zero: Any) -> str | None:
    """A file of state that is shorter than what was written, and so on a full disk; DeepSpeed 0.19 does not look.

    A hole in the middle of one, where room was found again for its end, is not seen.
    """
    swapper = zero.optimizer_swapper
    for one in swapper.swap_params_info.values():
        size = swapper._io_aligned_numel(one.numel()) * swapper.swap_element_size
        for path in one.get_swap_paths():
            if os.path.getsize(path) < size:
                return str(path)
    return None


def without_hooks(module: torch.nn.Module) -> torch.nn.Module:
    """A module, and those in it, without what is called before and after its forward pass."""
    for one in module.modules():
        one._forward_hooks.clear()
        one._forward_pre_hooks.clear()
    return module


def tensors_in(storage: torch.UntypedStorage) -> int:
    """How many tensors lie in a storage that is held in one place."""
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1


def watched() -> bool:
    """Whether a dispatch mode sees every operation now, as those of selective checkpoints do."""
    return bool(torch._C._len_torch_dispatch_stack())
