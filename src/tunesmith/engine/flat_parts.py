"""What DeepSpeed cuts flat weights into, as files: each process writes its pieces, and any number of them reads all.

A file is plain safetensors. The name of a tensor says the number of its parameter (in the optimizer's order), what it
is (a state, or `weight`), and where in the flattened parameter it begins: `12.exp_avg.4096`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FOLDER = "pieces"
NAMES = "names.json"  # of parameters, in the order of their numbers, and dtypes, where weights lie in pieces alone
MODEL = "model"  # what model they are of
WEIGHT = "weight"  # in float32, as the optimizer keeps it


class Piece(NamedTuple):
    """A stretch of something of a flattened parameter."""

    number: int
    name: str
    start: int
    values: torch.Tensor  # [n]


class Place(NamedTuple):
    """Where the piece of a parameter that a process has lies in a flat tensor that it is in with others."""

    flat: torch.Tensor
    offset: int
    start: int  # in the flattened parameter
    length: int
    group: int  # of parameters that are updated together

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """The piece [n] of a flat tensor of the same layout."""
        return flat.detach().narrow(0, self.offset, self.length)

    def put(self, value: torch.Tensor, flat: torch.Tensor) -> None:
        """Put what a whole parameter has of this piece into a flat tensor of the same layout."""
        self.of(flat).copy_(value.flatten().narrow(0, self.start, self.length))


def there(folder: Path) -> bool:
    """Whether a checkpoint has pieces."""
    return (folder / FOLDER).is_dir()


def has_weights(folder: Path) -> bool:
    """Whether a checkpoint has the weights in pieces alone."""
    return (folder / FOLDER / NAMES).is_file()


def copied(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces in the host's memory, which what happens to the others does not change."""
    return [one._replace(values=one.values.detach().cpu().clone()) for one in pieces]


def save(
    pieces: Iterable[Piece], folder: Path, rank: int, kinds: Mapping[str, torch.dtype] | None = None, part: str = ""
) -> Path:
    """Write the pieces of a process, or a `part` of them, into a file; and names and dtypes of weights nowhere else."""
    (folder / FOLDER).mkdir(exist_ok=True)
    if kinds and rank == 0:
        words = {name: str(kind).removeprefix("torch.") for name, kind in kinds.items()}
        (folder / FOLDER / NAMES).write_text(json.dumps(words), encoding="utf-8")
    named = {f"{one.number}.{one.name}.{one.start}": one.values for one in pieces}
    path = folder / FOLDER / f"{rank}{part}.safetensors"
    save_file(named, path)
    return path


def whole(
    parameters: Sequence[torch.Tensor], folder: Path, kind: str | None = None
) -> Iterator[tuple[int, str, torch.Tensor]]:
    """What a checkpoint's pieces make, one after the other: the parameter's number, what it is, and it in its shape."""
    if there(folder):
        for (index, name), pieces in _found(folder, lambda index, name: kind in (None, name)):
            like = parameters[index]
            yield index, name, _joined(pieces, shape_of(like))


Stretch = tuple[int, str, Path]  # of a flattened parameter: its beginning, the key of its tensor, and the file


def _found(folder: Path, wanted: Callable[[int, str], bool]) -> list[tuple[tuple[int, str], list[Stretch]]]:
    """Where the pieces lie of what is wanted, by the number of a parameter and what it is, in order."""
    where: dict[tuple[int, str], list[Stretch]] = {}
    for path in sorted((folder / FOLDER).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():
                index, name, start = key.split(".")
                if wanted(int(index), name):
                    where.setdefault((int(index), name), []).append((int(start), key, path))
    return sorted(where.items())


def _joined(pieces: Iterable[Stretch], shape: torch.Size) -> torch.Tensor:
    found = torch.zeros(shape.numel())
    for start, key, path in pieces:
        with safe_open(path, "pt") as file:
            values = file.get_tensor(key)
        found[start : start + len(values)] = values
    return found.view(shape)


def stored(folder: Path) -> dict[str, torch.dtype]:
    """The dtypes of the trained weights that a checkpoint has in pieces alone, by their names in the model."""
    found = json.loads((folder / FOLDER / NAMES).read_text(encoding="utf-8"))
    return {name: getattr(torch, kind) for name, kind in found.items()}


def read(folder: Path, wanted: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, torch.Tensor]:
    """Some of a checkpoint's weights, put together."""
    names = list(stored(folder))
    pieces = _found(folder, lambda index, name: name == WEIGHT and names[index] in wanted)
    return {
        names[index]: _joined(ones, wanted[names[index]][0]).to(wanted[names[index]][1]) for (index, _), ones in pieces
    }


def weights(model: torch.nn.Module, folder: Path) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """The parameters of a model whose weights a checkpoint has in pieces, each with what it has."""
    own = dict(model.named_parameters())
    parameters = [own[name] for name in stored(folder)]
    for number, _, value in whole(parameters, folder, WEIGHT):
        yield parameters[number], value


def put(parameter: torch.Tensor, value: torch.Tensor, rank: int) -> None:
    """Put a whole value into a parameter that DeepSpeed holds in parts: its own part, and where it is whole."""
    known: Any = parameter
    part = known.ds_tensor
    piece = value.flatten()[rank * part.numel() : (rank + 1) * part.numel()]
    part.data[: len(piece)].copy_(piece)
    if known.data.shape == value.shape:
        known.data.copy_(value)


def shape_of(parameter: torch.Tensor) -> torch.Size:
    """The shape of a parameter that DeepSpeed may hold in parts."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
