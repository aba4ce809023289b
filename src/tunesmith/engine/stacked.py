"""Adapters on top of each other: those below are merged into the model's weights, and the last stands beside them.

An adapter that was trained on merged ones keeps a list of them in its folder (`merged_adapters.json`), by which it is
put on the same weights again.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.engine import quantised
from tunesmith.engine.compat import peft_warnings
from tunesmith.engine.model import base_of
from tunesmith.errors import ModelError

FILE = "merged_adapters.json"
ADAPTER, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Stack = list[dict[str, str]]  # each the folder of an adapter, and the SHA-256 of its weights


def place_of(path: str) -> Path:
    """The folder of an adapter's weights, which a run has in `final/`. Raises ModelError."""
    folder = Path(path).expanduser().absolute()
    for place in (folder, folder / "final"):
        if (place / ADAPTER).is_file():
            return place
    raise ModelError(f"{path} is no adapter, nor a run that ended with one: it has no {ADAPTER}")


def config_of(place: Path) -> Any:
    """The options of peft of a stored adapter."""
    from peft import PeftConfig

    with peft_warnings():
        return PeftConfig.from_pretrained(str(place))


def beneath(place: Path) -> Stack:
    """What is merged into the model that a stored adapter belongs to, in order."""
    file = place / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def stack_of(model: Any) -> Stack:
    """What is merged into a model, in order."""
    return vars(base_of(model)).get("merged_adapters", [])


def save(model: Any, folder: Path) -> None:
    """Write what is merged into a model beside its adapter, where something is."""
    stack = stack_of(model)
    if stack:
        (folder / FILE).write_text(json.dumps(stack, indent=1) + "\n", encoding="utf-8")


def merged(model: Any, paths: Sequence[str]) -> Any:
    """A model with adapters of folders or runs merged into its weights, one after the other.

    Raises:
        ModelError: one is not there, does not fit, or was trained on other merged adapters.
    """
    for path in paths:
        model = _merged(model, place_of(path))
    return model


def put(model: Any, place: Path, trained: bool = False) -> Any:
    """A model with a stored adapter beside its weights, on top of what that was trained on. Raises ModelError."""
    model = _upon(model, place)
    return put_alone(model, place, trained)


def _merged(model: Any, place: Path) -> Any:
    return settled(put_alone(_upon(model, place), place, trained=False), place)


def settled(model: Any, place: Path) -> Any:
    """A model with the adapter beside it, which came from a folder, in its weights. Raises ModelError."""
    quantised.refuse_merging(base_of(model), f"the adapter {place}")
    stack = [*stack_of(model), {"folder": str(place), "sha256": _digest(place)}]
    base = model.merge_and_unload()
    base.merged_adapters = stack
    return base


def _upon(model: Any, place: Path) -> Any:
    """The model with what a stored adapter needs merged below it."""
    needed, there = beneath(place), stack_of(model)
    if not needed or _digests(needed) == _digests(there):
        return model
    if there:
        raise ModelError(
            f"the adapter {place} was trained on {_names(needed)}, and below it here is {_names(there)}: "
            "name those first"
        )
    for one in needed:
        below = place_of(one["folder"])
        if _digest(below) != one["sha256"]:
            raise ModelError(
                f"the adapter {place} was trained on {below}, whose weights are others now: bring them back"
            )
        model = _merged(model, below)
    return model


def put_alone(model: Any, place: Path, trained: bool = False) -> Any:
    """A model with a stored adapter beside its weights, whatever that was trained on. Raises ModelError."""
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with peft_warnings():
            return PeftModel.from_pretrained(model, str(place), is_trainable=trained)
    except (OSError, ValueError, RuntimeError, UserWarning, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"the adapter {place} cannot be put on {model.name_or_path!r}: {first}") from error


def _digest(place: Path) -> str:
    with open(place / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(stack: Stack) -> list[str]:
    return [one["sha256"] for one in stack]


def _names(stack: Stack) -> str:
    return ", ".join(one["folder"] for one in stack)
