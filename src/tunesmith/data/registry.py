"""Names of datasets: a file of {name: source}, or LLaMA-Factory's dataset_info.json, so that a recipe says a name."""

import json
import os
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.compat import dataset_info
from tunesmith.component import name_of
from tunesmith.data import files, hubs, source
from tunesmith.errors import DataError, RecipeError, near
from tunesmith.explain import explain
from tunesmith.recipe import Recipe
from tunesmith.recipe_data import Data, Source
from tunesmith.recipe_text import parse

IN_FILE = re.compile(r"(?P<file>.+\.(?:json|ya?ml)):(?P<name>[^/\\]+)", re.IGNORECASE)
IN_STEM = re.compile(r"(?P<stem>[\w.-]+):(?P<name>[^/\\:][^\\:]*)")
USUAL = "dataset_info"
USUAL_FOLDERS = (".", "data")
PLAIN_NAME = re.compile(r"[\w.-]+")


def resolved(data: Data, sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """The sources with those that are names replaced by what a registry says of them.

    A name is an entry of `data.registry`, `dataset_info:NAME` (the stem of `data.registry`, or of dataset_info.json
    here or in data/), or `some/file.json:NAME`. What the recipe says of a source outweighs the entry.

    Raises:
        DataError: there is no such registry or entry, the entry is wrong, or a file here is called as it.
    """
    return tuple(one if isinstance(one, source.Registered) else _resolved(data, one) for one in sources)


def applied(recipe: Recipe, to_train: bool = True) -> Recipe:
    """The recipe with the names of data.train, unless rows stand for it, and data.eval resolved. Raises DataError."""
    data, found = recipe.data, {}
    if to_train:
        found["train"] = resolved(data, data.train)
    if isinstance(data.eval, tuple):
        found["eval"] = resolved(data, data.eval)
    return recipe.model_copy(update={"data": data.model_copy(update=found)})


def notes(sources: tuple[Source, ...]) -> list[str]:
    """What each name stands for, in a line: `alpaca_en is data/alpaca_en.json, in the format alpaca`."""
    return [
        f"{one.registered} is {one.path}, in the format {name_of(one.format)}"
        for one in sources
        if isinstance(one, source.Registered)
    ]


def _resolved(data: Data, one: Source) -> Source:
    place = _place(data, one.path)
    if place is None:
        return one
    file, name = place
    entries = _entries(file)
    if name not in entries:
        raise DataError(f"{file} has no dataset {name!r}. {near(name, entries)}")
    options = _options(entries[name], f"{file}: {name}", file.parent)
    return _with(one, options, f"{file}: {name}")


def _place(data: Data, path: str) -> tuple[Path, str] | None:
    """The registry's file and the name in it that a path says, if it is a name."""
    if os.path.exists(path):
        _refuse_both(data, path)
        return None
    in_file, in_stem = IN_FILE.fullmatch(path), IN_STEM.fullmatch(path)
    if in_file:
        return Path(in_file["file"]).expanduser(), in_file["name"]
    registry = _registry(data)
    if in_stem and registry is not None and in_stem["stem"] == registry.stem:
        return registry, in_stem["name"]
    if in_stem and in_stem["stem"] == USUAL:
        return _usual(path), in_stem["name"]
    if registry is None:
        return None
    looks_plain = PLAIN_NAME.fullmatch(path) and not files.kind_of(path)
    return (registry, path) if looks_plain or path in _entries(registry) else None


def _refuse_both(data: Data, path: str) -> None:
    """Raise DataError for what is a file or folder here and an entry of the registry too."""
    registry = _registry(data)
    if registry is not None and path in _entries(registry):
        raise DataError(
            f"{path} is a file or folder here and an entry of {registry}: "
            f"write {os.path.join('.', path)} for the one, {registry.stem}:{path} for the other"
        )


def _registry(data: Data) -> Path | None:
    return None if data.registry is None else Path(data.registry).expanduser()


def _usual(path: str) -> Path:
    for folder in USUAL_FOLDERS:
        file = Path(folder) / f"{USUAL}.json"
        if file.is_file():
            return file
    raise DataError(f"{path}: there is no {USUAL}.json here or in data/; say where it is: data.registry=FILE")


def _entries(file: Path) -> dict[str, Any]:
    """The entries of a registry by name, as they stand in the file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"there is no registry {file}{source.beside(str(file))}") from None
    except OSError as error:
        raise DataError(f"the registry {file} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"the registry {file} is not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        entries = json.loads(text, object_pairs_hook=files.once) if file.suffix == ".json" else parse(text, str(file))
    except RecipeError as error:
        raise DataError(str(error).replace("with `model` and `data`", "of names and sources")) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"the registry {file} is not valid JSON: {error}") from None
    if not isinstance(entries, dict):
        raise DataError(f"the registry {file} must be an object of names and sources, and is {entries!r:.40}")
    return entries


def _options(entry: Any, where: str, folder: Path) -> dict[str, Any]:
    """The options of a source that an entry says, its path as it is from here."""
    if dataset_info.is_entry(entry):
        return dataset_info.options(entry, where, folder)
    options = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(options, dict) or not isinstance(options.get("path"), str):
        raise DataError(f"{where} must be a path, or an object with `path` (or `file_name`), and is {entry!r:.60}")
    path = options["path"]
    beside = folder / Path(path).expanduser()  # an absolute path stays what it is
    is_hub_id = hubs.HUB_ID.fullmatch(path) and not files.kind_of(path) and not beside.exists()
    if "://" in path or path.startswith(source.BUILTIN) or is_hub_id:
        return options
    return options | {"path": str(beside)}


def _with(one: Source, options: dict[str, Any], where: str) -> Source:
    """The entry's source with what the recipe says of it on top; of columns and replaced texts, one by one."""
    said = {name: getattr(one, name) for name in one.model_fields_set - {"path"}}
    for name in ("columns", "replace"):
        given = options.get(name) or {}
        if not isinstance(given, dict):
            raise DataError(f"{where}: `{name}` must be an object of names and is {given!r:.60}")
        said[name] = {**given, **getattr(one, name)}
    try:
        Source(**(options | said))  # which has not the name
    except ValidationError as error:
        said_wrong = "; ".join(explain(error, Source).splitlines())
        raise DataError(f"{where}: {said_wrong}") from None
    return source.Registered(**(options | said), registered=one.path)
