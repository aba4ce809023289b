"""`tunesmith synthesize`: instruction data from seed tasks, written by a model."""

import argparse
import json
import sys
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from tunesmith import schema
    from tunesmith.synthesis.options import Synthesis

    parser.add_argument("seeds", metavar="SEEDS", help="file of seed tasks: instruction and instances, or output")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; the same command goes on with it")
    parser.add_argument(
        "words", nargs="*", default=[], metavar="a=b", help="model=MODEL, which is required, and others"
    )
    parser.add_argument("--json", action="store_true", help="print the ledger as JSON on stdout")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _, *told = schema.as_lines(schema.groups(Synthesis))
    parser.epilog = "\n".join(["words:", *told])


def run(arguments: argparse.Namespace) -> int:
    """Make the data, or go on with a folder that an earlier call began."""
    from tunesmith.recipe_text import read_words
    from tunesmith.synthesis.options import Synthesis

    options = Synthesis(**read_words({}, arguments.words))
    from tunesmith.synthesis import make

    ledger = make.synthesize(arguments.seeds, arguments.out, options, lambda line: print(line, file=sys.stderr))
    if arguments.json:
        print(json.dumps(ledger))
        return 0
    print("\n".join(make.lines(ledger)))
    print(f"Train on it: tunesmith train sft-lora data.train={arguments.out / make.TRAIN}")
    return 0
