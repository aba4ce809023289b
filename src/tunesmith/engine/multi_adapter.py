"""Several named adapters on one base model in one process, switched without a reload; the base is in memory once.

peft has them: one adapter is active, and it alone is trained. Here are the steps that a script takes with them, and
what saves one of them as the plain adapter folder that it would be alone.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.engine import initial, stacked
from tunesmith.engine.compat import peft_warnings
from tunesmith.errors import ModelError, near

FIRST = "default"  # peft's name of the adapter that a model is wrapped with; others it saves in folders of their names


def names(model: Any) -> list[str]:
    """The names of the adapters on a peft model."""
    return list(model.peft_config)


def load(model: Any, name: str, folder: str | Path) -> None:
    """Put the adapter of a folder on a peft model under a new name, beside those that are there. None is switched.

    Raises:
        ModelError: the name is taken, or the folder's adapter does not fit the model.
    """
    if name in names(model):
        raise ModelError(f"there is an adapter {name!r} on the model: choose another name, or delete it first")
    used = active(model)
    try:
        with peft_warnings():
            model.load_adapter(str(folder), name, is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError, UserWarning) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"the adapter {folder} cannot be put on the model: {first}") from error
    use(model, used)


def add(model: Any, name: str, like: str | None = None) -> None:
    """Put a new adapter on a peft model, with the options of the adapter `like` or of the active one. None is switched.

    Raises:
        ModelError: the name is taken, or there is no adapter `like`.
    """
    if name in names(model):
        raise ModelError(f"there is an adapter {name!r} on the model: choose another name, or delete it first")
    used = active(model)
    model.add_adapter(name, model.peft_config[_known(model, like or used)])
    use(model, used)


def active(model: Any) -> str:
    """The name of the adapter that the model computes with."""
    return str(model.active_adapter)


def use(model: Any, name: str) -> None:
    """Compute with, and train, one of the adapters; the others stay as they are. Raises ModelError for no such name."""
    model.set_adapter(_known(model, name))


@contextmanager
def using(model: Any, name: str | None) -> Iterator[None]:
    """A block in which the model computes with one of its adapters, or with none; then again with the one before.

    Raises:
        ModelError: there is no adapter of the name.
    """
    if name is None:
        with model.disable_adapter():
            yield
        return
    before = active(model)
    use(model, name)
    try:
        yield
    finally:
        use(model, before)


def save(model: Any, name: str, folder: Path) -> None:
    """Write one of the adapters as a plain peft folder, whatever is beside it. Raises ModelError for no such name."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as work:
        model.save_pretrained(work, selected_adapters=[_known(model, name)], save_embedding_layers=False)
        own = [] if name == FIRST else [*(Path(work) / name).iterdir()]
        for file in [*Path(work).glob("*.*"), *own]:
            file.replace(folder / file.name)
    if initial.takes(model.peft_config[name]):
        initial.make_plain(model, folder)
    stacked.save(model, folder)


def _known(model: Any, name: str) -> str:
    if name not in names(model):
        raise ModelError(f"there is no adapter {name!r} on the model. {near(name, names(model))}")
    return name
