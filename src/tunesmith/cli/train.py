"""`tunesmith train`: a recipe from start to end, or a run folder from its last checkpoint."""

import argparse
import json
import shlex
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", metavar="RECIPE_OR_RUN", help="file, shipped recipe's name or run folder")
    parser.add_argument("words", nargs="*", default=[], metavar="a.b=c", help="options to change; launcher=torchrun")
    parser.add_argument("--json", action="store_true", help="print the run's summary as JSON on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Train. Returns 0, 128 + the number of the signal that stopped the run, or what a launcher's command returns."""
    from tunesmith import launching
    from tunesmith.errors import RunError
    from tunesmith.recipe import Recipe

    launcher, words = launching.split(arguments.words)
    folder = Path(arguments.recipe) if (Path(arguments.recipe) / "recipe.yaml").is_file() else None
    if folder is not None and words:
        elsewhere = [] if Recipe.load(str(folder)).train.output_dir is None else ["train.output_dir=NEW"]
        again = shlex.join(["tunesmith", "train", f"{folder}/recipe.yaml", *words, *elsewhere])
        raise RunError(f"{folder} is a run, and keeps its recipe when it goes on. For a new run: {again}")
    recipe = Recipe.load(arguments.recipe, words)
    if launcher is not None:
        flags = [f"--{name}" for name in ("json", "verbose") if getattr(arguments, name)]
        out = str(folder or recipe.train.output_dir or "")
        return launching.start(launcher, ["train", arguments.recipe, *words, *flags], out, arguments.verbose)
    from tunesmith import run
    from tunesmith.engine import ranks

    done = run.resume(folder) if folder is not None else run.train(recipe)
    if arguments.json and ranks.own() == 0:
        print(json.dumps(done.summary))
    return done.exit_code
