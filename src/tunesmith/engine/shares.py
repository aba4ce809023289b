"""What lies in parts on several processes, as files: each writes its own parts, and any number of them reads all again.

They are torch's distributed checkpoints in safetensors (https://docs.pytorch.org/docs/stable/distributed.checkpoint.html):
a file's header says where in a whole tensor each part belongs. There is no pickle in them.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from tunesmith.engine import shared_out
from tunesmith.engine.model import base_of

FOLDER = "shares"
Parts = Mapping[str, dict[str, Any]]  # tensors, of which each process has its own parts, by folder and name
WEIGHTS, STATE, MODEL = "weights", "optimizer", "model"


def there(folder: Path) -> bool:
    """Whether a checkpoint's weights lie in parts."""
    return (folder / FOLDER).is_dir()


def are_in(model: Any) -> bool:
    """Whether what is trained of a model lies in parts."""
    return any(isinstance(one, DTensor) for one in _trained(model).values())


def staged(model: Any, optimizer: torch.optim.Optimizer) -> Parts:
    """The trained weights that lie in parts and the optimizer's state of them, copied to the host's memory.

    By the folders that they are for; nothing where all lie whole. Every process calls it.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    shared_out.rest(model)
    if not are_in(model):
        return {}
    weights = _trained(model)
    state = {
        f"{index}.{name}": value
        for index, own in optimizer.state_dict()["state"].items()
        for name, value in own.items()
        if isinstance(value, DTensor)
    }
    stager = HuggingFaceStorageWriter("", save_distributed=True)
    return {WEIGHTS: stager.stage(weights), STATE: stager.stage(state)}


def write(parts: Parts, folder: Path, group: Any) -> None:
    """Write what was staged into a folder, by messages of a group of all processes."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    for name, tensors in parts.items():
        place = folder / FOLDER / name
        place.mkdir(parents=True, exist_ok=True)
        writer = HuggingFaceStorageWriter(str(place), save_distributed=True)
        with _reason():
            save(tensors, storage_writer=writer, process_group=group)


def describe(model: Any, folder: Path, within: str = FOLDER) -> None:
    """Write beside the parts what model they are of, so that they can be put together without it."""
    base, place = base_of(model), folder / within / MODEL
    base.config.architectures, base.config.dtype = [shared_out.plain_class(base).__name__], base.dtype
    base.config.save_pretrained(place)
    if base.can_generate():
        base.generation_config.save_pretrained(place)


def stored(folder: Path) -> dict[str, torch.dtype]:
    """The dtypes of the trained weights that a checkpoint has in parts, by their names in the model."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    found: Any = HuggingFaceStorageReader(str(folder / FOLDER / WEIGHTS)).read_metadata().state_dict_metadata
    return {name: one.properties.dtype for name, one in found.items()}


def read(folder: Path, wanted: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, torch.Tensor]:
    """Some of a checkpoint's weights, put together."""
    found = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in wanted.items()}
    if found:
        _read(found, folder / FOLDER / WEIGHTS)
    return found


def load(model: Any, folder: Path) -> None:
    """Put the weights of a checkpoint into a model, shared out in any way or whole."""
    shared_out.rest(model)
    _read(_trained(model), folder / FOLDER / WEIGHTS)


def load_state(parameters: Sequence[torch.Tensor], folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The state of the optimizer of some parameters that a checkpoint has in parts, each as its parameter lies."""
    if there(folder):
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        place = folder / FOLDER / STATE
        names = HuggingFaceStorageReader(str(place)).read_metadata().state_dict_metadata
        state = {name: torch.zeros_like(parameters[int(name.partition(".")[0])]).detach() for name in names}
        _read(state, place)
        yield from state.items()


def part_of(value: Any, like: torch.Tensor) -> Any:
    """A whole tensor as the one lies that it belongs to; anything else as it is."""
    if isinstance(like, DTensor) and isinstance(value, torch.Tensor) and not isinstance(value, DTensor):
        if value.shape == like.shape:
            return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value


def parts_of(state: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """A whole state as a model of the same shape holds it."""
    shared_out.rest(model)
    own = model.state_dict()
    return {name: part_of(one, own[name]) for name, one in state.items()}


def _trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}


def _read(tensors: dict[str, torch.Tensor], place: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_parts

    with _reason(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process", UserWarning)
        load_parts(tensors, storage_reader=HuggingFaceStorageReader(str(place)))


@contextmanager
def _reason() -> Iterator[None]:
    """Turn torch's error about some ranks into what the first of them met, as a full disk."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
