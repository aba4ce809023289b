"""`tunesmith train`: a recipe from start to end, or a run folder from its last checkpoint."""

import argparse
import json
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", metavar="RECIPE_OR_RUN", help="file, shipped recipe's name or run folder")
    parser.add_argument("words", nargs="*", default=[], metavar="a.b=c", help="options that replace the recipe's")
    parser.add_argument("--json", action="store_true", help="print the run's summary as JSON on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Train. Returns 0, or 128 + the number of the signal that stopped the run."""
    from tunesmith.errors import RunError
    from tunesmith.recipe import Recipe

    folder = Path(arguments.recipe)
    if (folder / "recipe.yaml").is_file():
        if arguments.words:
            again = f"tunesmith train {folder / 'recipe.yaml'} {' '.join(arguments.words)}"
            raise RunError(f"{folder} is a run, and keeps its recipe when it goes on. For a new run: {again}")
        from tunesmith.run import resume

        done = resume(folder)
    else:
        recipe = Recipe.load(arguments.recipe, arguments.words)
        from tunesmith.run import train

        done = train(recipe)
    if arguments.json:
        print(json.dumps(done.summary))
    return done.exit_code
