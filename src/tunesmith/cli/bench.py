"""`tunesmith bench`: how fast a recipe trains, in honest numbers, alone or beside other trainers."""

import argparse
import json
import sys

from tunesmith.cli.main import natural, positive


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="recipe file or shipped recipe's name")
    parser.add_argument("words", nargs="*", default=[], metavar="a.b=c", help="options to change")
    parser.add_argument("--steps", type=natural, default=10, metavar="N", help="counted steps (10; 0: the whole run)")
    parser.add_argument("--warmup", type=positive, default=2, metavar="N", help="steps before them (2)")
    parser.add_argument("--against", metavar="hf,trl,...", help="contenders that take turns on the same rows")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="turns of each of them (3)")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH", help="the Python they run in")
    parser.add_argument("--peer-batch-size", type=positive, default=8, metavar="N", help="rows of their batch (8)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table or JSON."""
    from tunesmith import bench, bench_against
    from tunesmith.folder import look_for_files
    from tunesmith.parts import speaker
    from tunesmith.recipe import Recipe

    recipe = Recipe.load(arguments.recipe, arguments.words)
    look_for_files(recipe)
    steps, warmup = arguments.steps, arguments.warmup
    if arguments.against is None:
        found, show = bench.measure(recipe, steps, warmup, speaker()), bench.show
    else:
        length = bench_against.Length(steps, warmup, arguments.rounds)
        peers = bench_against.Peers.of(arguments.against, arguments.peer_python, arguments.peer_batch_size)
        found, show = bench_against.compare(recipe, peers, length, speaker()), bench_against.show
    print(json.dumps(found)) if arguments.json else show(found)
    return 0
