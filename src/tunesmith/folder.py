"""Run folders: where a new one goes, and what is refused before anything heavy is imported."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tunesmith.data import source
from tunesmith.errors import RunError
from tunesmith.recipe import Recipe

FINAL = "final"


def look_for_files(recipe: Recipe, with_train: bool = True) -> None:
    """Raise DataError for a source whose files are not there, before a model is loaded for them."""
    sources = recipe.data.train if with_train else ()
    for one in (*sources, *(recipe.data.eval if isinstance(recipe.data.eval, tuple) else ())):
        source.local_files(one)


def refuse_full(output_dir: str | None) -> None:
    """Raise RunError when the folder that a recipe names holds something."""
    folder = Path(output_dir) if output_dir is not None else None
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"train.output_dir: {folder} is a file")
    if any(folder.iterdir()):
        go_on = f", or go on with that run: tunesmith train {folder}" if (folder / "recipe.yaml").is_file() else ""
        raise RunError(f"train.output_dir: {folder} is not empty. Choose another folder{go_on}")


def new_folder(recipe: Recipe, files: Mapping[str, bytes]) -> Path:
    """Make the folder of a new run: as the recipe says, or the next free one of its name under runs/.

    It appears with its first files, or empty if the program is killed here: never with some of them.
    """
    folder = _claimed(recipe)
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for name, content in files.items():
        (work / name).write_bytes(content)
    os.replace(work, folder)
    return folder


def _claimed(recipe: Recipe) -> Path:
    """An empty folder of our own."""
    if recipe.train.output_dir is not None:
        refuse_full(recipe.train.output_dir)
        folder = Path(recipe.train.output_dir)
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
