"""A checkpoint whose weights lie in parts (`engine/shares.py`, `engine/flat_parts.py`), as a plain model folder.

Tensors are put together some at a time, so that memory holds `AT_ONCE` bytes of them, or one that is larger. What was
not trained is read from the files of the base model.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith import atomic, record
from tunesmith.engine import checkpoint, flat_parts, shares
from tunesmith.engine.conversions import Conversions
from tunesmith.engine.model import read_config
from tunesmith.errors import RunError
from tunesmith.exports.checks.compare import refuse_taken
from tunesmith.exports.merging import stream, tensors
from tunesmith.exports.merging.tensors import Spec
from tunesmith.generate.load import RECIPE, has_parts
from tunesmith.recipe import Recipe

AT_ONCE = 10**9  # bytes
LONGEST_FILE = 5 * 10**9  # bytes
OF_TRAINING = {checkpoint.MANIFEST, checkpoint.STATE, "trainer_state.json"}  # of a checkpoint, and no model's


@contextlib.contextmanager
def gathered(run: Path, out: Path, is_there: bool = False) -> Iterator[Path]:
    """What an export is made of: a run or checkpoint itself, or a plain folder of one whose weights lie in parts.

    That folder lies beside `out`, and is removed when the block ends. `is_there` is of an `out` that is compared again.

    Raises:
        RunError: the checkpoint is damaged, or lacks what its base model does too; `out` is taken; there is no room.
    """
    if not has_parts(run):
        yield run
        return
    problem = checkpoint.damage(run)
    if problem is not None:
        raise RunError(f"{run} cannot be exported: {problem}")
    if not is_there:
        refuse_taken(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.gathered-", dir=out.parent) as place:
        with atomic.room(out, RunError, "Make room, or choose another folder"):
            _Gathering.of(run).write(Path(place))
        yield Path(place)


@dataclass(frozen=True)
class _Gathering:
    """A checkpoint in parts, the model that it is of without its weights, and where those lie that it lacks."""

    folder: Path
    parts: Any  # the module that reads them
    hollow: dict[str, torch.Tensor]  # each weight once
    conversions: Conversions
    stored: dict[str, torch.dtype]
    base: "stream.Plan | None"  # None: nothing is lacking
    dtype: torch.dtype

    @classmethod
    def of(cls, folder: Path) -> "_Gathering":
        """What is known of a checkpoint before its weights are read."""
        import transformers

        parts: Any = shares if shares.there(folder) else flat_parts
        config = read_config(folder / parts.FOLDER / parts.MODEL)
        with torch.device("meta"):
            model = getattr(transformers, config.architectures[0])(config)
        stored, seen = parts.stored(folder), set[int]()
        hollow = {}
        for name, one in model.state_dict(keep_vars=True).items():
            if id(one) not in seen:
                hollow[name] = one.detach()
            seen.add(id(one))
        lacking = hollow.keys() - stored.keys()
        base = _base(folder, sorted(lacking)) if lacking else None
        return cls(folder, parts, hollow, Conversions(model), stored, base, config.dtype)

    def write(self, place: Path) -> None:
        """Write the model folder."""
        specs = [
            Spec(name, self._kind(whole, one), tuple(one.shape))
            for whole, value in self.hollow.items()
            for name, one in self.conversions.parted({whole: value}).items()
        ]
        tensors.write(place, specs, self._values(), LONGEST_FILE)
        for path in (self.folder / self.parts.FOLDER / self.parts.MODEL).iterdir():
            shutil.copy(path, place)
        for path in self.folder.iterdir():
            if path.is_file() and path.suffix != ".safetensors" and path.name not in OF_TRAINING:
                shutil.copy(path, place)

    def _kind(self, name: str, one: torch.Tensor) -> torch.dtype:
        return self.stored.get(name, self.dtype) if one.dtype.is_floating_point else one.dtype

    def _values(self) -> Iterator[torch.Tensor]:
        """The tensors as they are stored, in order."""
        for names in self._some():
            read = {name: (self.hollow[name].shape, self.stored[name]) for name in names if name in self.stored}
            whole: dict[str, Any] = self.parts.read(self.folder, read)
            for name in names:
                value = whole.pop(name) if name in whole else self._of_base(name)
                yield from self.conversions.parted({name: value}).values()

    def _of_base(self, name: str) -> torch.Tensor:
        assert self.base is not None, "looked for beforehand"
        value = self.base.read(name)
        return value.to(self._kind(name, self.hollow[name]))

    def _some(self) -> Iterator[Sequence[str]]:
        """Names of weights that are held at once."""
        names: list[str] = []
        size = 0
        for name, one in self.hollow.items():
            own = one.numel() * self._kind(name, one).itemsize
            if names and size + own > AT_ONCE:
                yield names
                names, size = [], 0
            names.append(name)
            size += own
        yield names


def _base(folder: Path, lacking: Sequence[str]) -> "stream.Plan":
    """Where the weights lie that a checkpoint lacks. Raises RunError."""
    run = folder.parent.parent
    if not (run / RECIPE).is_file():
        raise RunError(f"{folder} has no {lacking[0]}, which was not trained: export it from inside of its run folder")
    model = Recipe.load(str(run / RECIPE)).model
    beside = Path(record.read(run)["working_folder"]) / Path(model.path).expanduser()
    plan = stream.plan(str(beside) if beside.is_dir() else model.path, None)
    missing = [name for name in lacking if plan is None or name not in plan.sources]
    if plan is None or missing:
        raise RunError(f"{folder} has no {missing[0]}, which was not trained, and {model.path} has no file with it")
    return plan
