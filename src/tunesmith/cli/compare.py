"""`tunesmith compare`: some recipes trained one after the other, or finished runs, beside each other."""

import argparse
import json
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "said",
        nargs="+",
        metavar="RECIPE_OR_RUN",
        help="recipes to train, or finished run folders; and a.b=c, options to change in every recipe",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, an object for each, on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Train what is not trained, and print a table or JSON."""
    from tunesmith.compare import compare, show
    from tunesmith.parts import speaker

    words = [one for one in arguments.said if "=" in one and not Path(one).exists()]
    found = compare([one for one in arguments.said if one not in words], words, speaker())
    print(json.dumps(found)) if arguments.json else show(found)
    return 0
