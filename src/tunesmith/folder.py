"""Run folders: where a new one goes, and what is refused before anything heavy is imported."""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tunesmith import atomic
from tunesmith.data import registry, source
from tunesmith.errors import RunError
from tunesmith.recipe import Recipe
from tunesmith.way_on import way_on

FINAL = "final"


def look_for_files(recipe: Recipe, with_train: bool = True) -> None:
    """Raise DataError for a source whose files are not there, before a model is loaded for them."""
    sources = recipe.data.train if with_train else ()
    sources += recipe.data.eval if isinstance(recipe.data.eval, tuple) else ()
    for one in registry.resolved(recipe.data, sources):
        source.local_files(one)


def refuse_full(output_dir: str | None) -> None:
    """Raise RunError when the folder that a recipe names holds something, or cannot be written."""
    folder = _said(output_dir) if output_dir is not None else Path("runs")
    if output_dir is not None and folder.exists():
        if not folder.is_dir():
            raise RunError(f"train.output_dir: {folder} is a file")
        if any(folder.iterdir()):
            said = f", or go on with that run: {way_on(folder)}" if (folder / "recipe.yaml").is_file() else ""
            raise RunError(f"train.output_dir: {folder} is not empty. Choose another folder{said}")
    _refuse_unwritable(folder)


def _refuse_unwritable(folder: Path) -> None:
    """Make a folder where the first one would be made, and remove it: only that says whether it can be."""
    place = folder.resolve()
    if not _is_fixed(place):
        place = next(parent for parent in place.parents if parent.exists())
    try:
        tempfile.TemporaryDirectory(prefix=".tunesmith-", dir=place).cleanup()
    except OSError as error:
        reason = f"{place} cannot be written ({error.strerror})"
        raise RunError(f"train.output_dir: {folder}: {reason}. Choose another folder") from error


def _said(output_dir: str) -> Path:
    """The folder with `~` expanded, and with a name also where `.` or `..` was said."""
    try:
        folder = Path(output_dir).expanduser()
    except RuntimeError as error:
        raise RunError(f"train.output_dir: {output_dir}: there is no such user") from error
    return folder.resolve() if folder.name in ("", "..") else folder


def _is_fixed(folder: Path) -> bool:
    """Whether a folder is there and cannot be replaced by another of its name: a mount point or the working folder."""
    return folder.exists() and (folder.is_mount() or folder.samefile(Path.cwd()))


def new_folder(recipe: Recipe, files: Mapping[str, bytes]) -> Path:
    """Make the folder of a new run: as the recipe says, or the next free one of its name under runs/.

    It appears with its first files, or empty if the program is killed here: never with some of them (but where it is
    a mount point or the working folder, into which they are written one after the other).

    Raises:
        RunError: the folder cannot be used, or there is no room for the files.
    """
    folder = _claimed(recipe)
    place = folder.resolve()
    with atomic.room(folder, RunError, "Make room, or say another train.output_dir"), ExitStack() as undo:
        if _is_fixed(place):
            for name, content in files.items():
                atomic.write(place / name, content)
                undo.callback((place / name).unlink)
        else:
            undo.callback(place.rmdir)
            with atomic.folder(place) as work:
                for name, content in files.items():
                    (work / name).write_bytes(content)
        undo.pop_all()
    return folder


def _claimed(recipe: Recipe) -> Path:
    """An empty folder of our own."""
    if recipe.train.output_dir is not None:
        refuse_full(recipe.train.output_dir)
        folder = _said(recipe.train.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    number = 1
    while True:
        folder = Path("runs") / (f"{recipe.name}-{number}" if number > 1 else str(recipe.name))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder
