"""`tunesmith verify`: a few steps of a recipe in every way that must give the same, side by side."""

import argparse
import json


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="file, or shipped recipe's name")
    parser.add_argument("words", nargs="*", default=[], metavar="a.b=c", help="options that replace the recipe's")
    parser.add_argument("--json", action="store_true", help="print a JSON list, an object for each way, on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Train in every way, and print a table or JSON. Returns 1 when one differs or fails."""
    from dataclasses import asdict

    from tunesmith.parts import speaker
    from tunesmith.verify import lines, verify

    found = verify(arguments.recipe, arguments.words, speaker())
    if arguments.json:
        print(json.dumps([asdict(one) | {"same": one.same} for one in found]))
    else:
        print("\n".join(lines(found)))
    return 0 if all(one.same for one in found) else 1
