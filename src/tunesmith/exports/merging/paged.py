"""A model whose weights are pages of its files, forgotten as soon as the layer that needed them has answered.

Asking a model a few questions then takes the memory of one layer, and the system reads the pages again when they are
needed, mostly from its cache of files. A model that is changed in memory cannot be had so.
"""

import mmap
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith.engine.model import base_of
from tunesmith.exports.merging.tensors import Stored, stored

FORGETS = sys.platform != "win32"
WRAPPED = (".base_layer", ".original_module")  # what peft puts into the name of a weight

Range = tuple[mmap.mmap, int, int]


def page(model: Any, files: Sequence[Path]) -> None:
    """Make the weights of a loaded model on a CPU that are the very numbers of files pages of these files."""
    base = base_of(model)
    if not FORGETS or base.device.type != "cpu":
        return
    maps = {file: _mapped(file) for file in files}
    found = stored(files)
    ranges: dict[str, Range] = {}  # by the name of the module
    shared: dict[int, Range] = {}  # by the identity of a parameter, which tied modules share
    for name, parameter in base.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        plain = name
        for part in WRAPPED:
            plain = plain.replace(part, "")
        one = found.get(plain)
        if id(parameter) in shared:
            ranges[f"{owner} {name}"] = shared[id(parameter)]
        elif one is not None and (one.spec.dtype, one.spec.shape) == (parameter.dtype, tuple(parameter.shape)):
            parameter.data = _view(maps[one.file], one)
            ranges[f"{owner} {name}"] = shared[id(parameter)] = (maps[one.file], one.start, one.spec.nbytes)
    _forget_after(base, ranges)


def _mapped(file: Path) -> mmap.mmap:
    """A file's bytes, of which a change would stay in memory."""
    with open(file, "rb") as handle:
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)


def _view(pages: mmap.mmap, one: Stored) -> torch.Tensor:
    count = torch.Size(one.spec.shape).numel()
    if count == 0:
        return torch.empty(one.spec.shape, dtype=one.spec.dtype)
    return torch.frombuffer(pages, dtype=one.spec.dtype, count=count, offset=one.start).view(one.spec.shape)


def _forget_after(base: Any, ranges: dict[str, Range]) -> None:
    """Have each module forget its own pages after it has answered, and each layer all of those in it."""
    layers = [name for name, module in base.named_modules() if type(module) is torch.nn.ModuleList]
    owners: dict[str, list[Range]] = {}
    for key, span in ranges.items():
        owner = key.partition(" ")[0]
        owners.setdefault(owner, []).append(span)
        for outer in layers:
            if owner.startswith(f"{outer}."):
                at = owner.removeprefix(f"{outer}.").partition(".")[0]
                owners.setdefault(f"{outer}.{at}", []).append(span)
    for owner, spans in owners.items():
        base.get_submodule(owner).register_forward_hook(_Forget(spans))


class _Forget:
    """Gives pages back to the system, as a hook after a module's forward pass."""

    def __init__(self, spans: Iterable[Range]) -> None:
        self.spans = [whole for span in spans if (whole := _whole(*span))[2] > 0]

    def __call__(self, *answered: Any) -> None:
        for pages, start, length in self.spans:
            pages.madvise(mmap.MADV_DONTNEED, start, length)


def _whole(pages: mmap.mmap, start: int, length: int) -> Range:
    """The pages that lie in a range as a whole."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (start + length) // mmap.PAGESIZE * mmap.PAGESIZE
    return pages, first, end - first
