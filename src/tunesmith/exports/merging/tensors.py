"""Tensors of safetensors files, one at a time: where each lies, reading one, and writing many without holding them.

The format (https://github.com/huggingface/safetensors#format): the length of a header in 8 bytes, the header as JSON,
the numbers.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import RunError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
KINDS = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
WORDS = {kind: word for word, kind in KINDS.items()}
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # as transformers reads max_shard_size
ALIGNED = 8  # bytes


@dataclass(frozen=True, slots=True)
class Spec:
    """What a tensor will be."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in a file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file."""

    spec: Spec
    file: Path
    start: int

    def read(self) -> torch.Tensor:
        """The tensor, in memory of its own."""
        buffer = torch.empty(self.spec.nbytes, dtype=torch.uint8)
        with open(self.file, "rb") as file:
            file.seek(self.start)
            if file.readinto(buffer.numpy().data) != self.spec.nbytes:
                raise RunError(f"{self.file} ends before its tensor {self.spec.name} does")
        return buffer.view(self.spec.dtype).view(self.spec.shape)


def stored(files: Iterable[Path]) -> dict[str, Stored]:
    """The tensors of safetensors files by name, in the order in which they lie there.

    Raises RunError for a torn one.
    """
    return {one.spec.name: one for file in files for one in _header(file)}


def _header(path: Path) -> Iterator[Stored]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            found = json.loads(file.read(length))
        except ValueError:
            raise RunError(f"{path} is no whole safetensors file: its header cannot be read") from None
    found.pop("__metadata__", None)
    for name, said in sorted(found.items(), key=lambda item: item[1]["data_offsets"]):
        spec = Spec(name, KINDS[said["dtype"]], tuple(said["shape"]))
        yield Stored(spec, path, 8 + length + said["data_offsets"][0])


def files_of(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order; [] where it has none. Raises RunError for a missing one."""
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = [WEIGHTS] if (folder / WEIGHTS).is_file() else []
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise RunError(f"{folder} lacks {missing[0]}, which its {INDEX} names")
    return [folder / name for name in names]


def bytes_of(size: str) -> int:
    """A size such as 5GB in bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(KB|MB|GB|TB)", size)
    assert match is not None, "checked where it is declared"
    return int(float(match[1]) * UNITS[match[2]])


def write(folder: Path, specs: Sequence[Spec], tensors: Iterable[torch.Tensor], limit: int) -> dict[str, str]:
    """Write tensors, in the order of their specs, into files of at most `limit` bytes where one tensor is not longer.

    Returns the SHA-256 of each file of weights, as it was written.
    """
    shards = _shards(specs, limit)
    names = [WEIGHTS]
    if len(shards) > 1:
        names = [f"model-{at:05}-of-{len(shards):05}.safetensors" for at in range(1, len(shards) + 1)]
        _write_index(folder, names, shards)
    coming = iter(tensors)
    return {name: _write_file(folder / name, shard, coming) for name, shard in zip(names, shards, strict=True)}


def _shards(specs: Sequence[Spec], limit: int) -> list[list[Spec]]:
    shards: list[list[Spec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards


def _write_index(folder: Path, names: Sequence[str], shards: Sequence[Sequence[Spec]]) -> None:
    laid = [(spec, name) for name, shard in zip(names, shards, strict=True) for spec in shard]
    total = {
        "total_parameters": sum(torch.Size(spec.shape).numel() for spec, _ in laid),
        "total_size": sum(spec.nbytes for spec, _ in laid),
    }
    index = {"metadata": total, "weight_map": {spec.name: name for spec, name in laid}}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_file(path: Path, specs: Sequence[Spec], coming: Iterator[torch.Tensor]) -> str:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": WORDS[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [at, at + spec.nbytes],
        }
        at += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for spec in specs:
            tensor = next(coming)
            assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape), (spec, tensor.dtype, tensor.shape)
            data = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
    return digest.hexdigest()
