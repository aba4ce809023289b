"""`tunesmith recipes`: list the shipped recipes, or copy one."""

import argparse
import json
import shutil
from pathlib import Path

from tunesmith.cli.main import UsageError
from tunesmith.errors import RecipeError, near


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.usage = "tunesmith recipes [PATTERN] [--json]\n       tunesmith recipes copy NAME [DEST]"
    parser.add_argument("words", nargs="*", default=[], metavar="PATTERN", help="part of a name; or copy NAME [DEST]")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(arguments: argparse.Namespace) -> int:
    """List or copy. Raises RecipeError when there is no such recipe or the copy would overwrite a file."""
    from tunesmith.recipe_text import recipe_folder, recipe_names

    files = {name: recipe_folder() / f"{name}.yaml" for name in recipe_names()}
    match arguments.words:
        case ["copy", name, *rest] if len(rest) < 2 and name in files:
            place = Path(*rest) / files[name].name if Path(*rest).is_dir() else Path(*rest)
            if place.exists():
                raise RecipeError(f"{place} exists. Name another: tunesmith recipes copy {name} FILE")
            shutil.copyfile(files[name], place)
            print(f"wrote {place}")
        case [] | [_] if chosen := [name for name in files if "".join(arguments.words) in name]:
            rows = {name: files[name].read_text("utf-8").partition("\n")[0].lstrip("# ") for name in chosen}
            print(json.dumps(rows) if arguments.json else "\n".join(f"{n:12}  {s}" for n, s in rows.items()))
        case ["copy", name] | ["copy", name, _] | [name] if name != "copy":
            raise RecipeError(f"there is no shipped recipe {name!r}. {near(name, files)}")
        case _:
            said = " ".join(arguments.words)
            raise UsageError(f"say `recipes [PATTERN]` or `recipes copy NAME [DEST]` (it was `recipes {said}`)")
    return 0
