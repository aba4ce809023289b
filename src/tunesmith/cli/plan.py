"""`tunesmith plan`: memory and time of a recipe's step, from the model's config alone, and what would fit."""

import argparse
import json


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from tunesmith.cli.main import positive, price

    parser.add_argument("recipe", metavar="RECIPE", help="recipe file or shipped recipe's name")
    parser.add_argument("words", nargs="*", default=[], metavar="a.b=c", help="options to change")
    parser.add_argument("--memory", metavar="8GB", help="memory of the device (what is free, where it is here)")
    parser.add_argument("--devices", metavar="8xH100-80GB", help="devices of a machine, of planner/devices.yaml")
    parser.add_argument("--nodes", type=positive, metavar="N", help="machines, each with these devices")
    parser.add_argument("--price", type=price, metavar="2.5", help="of a device for an hour, in your currency")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Plan, and print. Returns 1 when the recipe does not fit."""
    from tunesmith.errors import RecipeError
    from tunesmith.planner import devices, fleet, plan
    from tunesmith.recipe import Recipe

    recipe = Recipe.load(arguments.recipe, arguments.words)
    if arguments.devices is None:
        for name in ("nodes", "price"):
            if (value := getattr(arguments, name)) is not None:
                raise RecipeError(f"--{name} {value:g} is of devices: say them as --devices 8xH100-80GB")
        memory = None if arguments.memory is None else devices.bytes_of(arguments.memory)
        one = plan.make(recipe, plan.target_of(recipe, memory))
        print(json.dumps(plan.as_json(one)) if arguments.json else "\n".join(plan.lines(one)))
        return 1 if one.fits is False else 0
    cluster = devices.cluster_of(arguments.devices, arguments.nodes or 1, arguments.memory)
    found = fleet.make(recipe, cluster, arguments.price)
    print(json.dumps(fleet.as_json(found)) if arguments.json else "\n".join(fleet.lines(found)))
    return 1 if found.best is None else 0
