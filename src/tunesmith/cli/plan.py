"""`tunesmith plan`: the memory of a recipe's step, from the model's config alone, and what would fit."""

import argparse
import json


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="recipe file or shipped recipe's name")
    parser.add_argument("words", nargs="*", default=[], metavar="a.b=c", help="options to change")
    parser.add_argument("--memory", metavar="8GB", help="memory of the device (what is free, where it is here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Plan, and print. Returns 1 when the recipe does not fit."""
    from tunesmith.planner import plan
    from tunesmith.recipe import Recipe

    recipe = Recipe.load(arguments.recipe, arguments.words)
    memory = None if arguments.memory is None else plan.bytes_of(arguments.memory)
    found = plan.make(recipe, plan.target_of(recipe, memory))
    print(json.dumps(plan.as_json(found)) if arguments.json else "\n".join(plan.lines(found)))
    return 1 if found.fits is False else 0
