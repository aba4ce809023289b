"""`tunesmith data convert`: the rows of a data set in another format and file."""

import argparse
import json
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.usage = "tunesmith data convert INPUT OUTPUT [to=messages] [a=b ...] [--strict] [--force] [--json]"
    parser.add_argument(
        "action", choices=("convert",), metavar="convert", help="write the rows of INPUT to the file OUTPUT"
    )
    parser.add_argument("input", metavar="INPUT", help="file, folder, glob, hub id, address or name in a registry")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="json, jsonl, csv, tsv, parquet, xlsx or txt file")
    words = "to=FORMAT (messages), format=FORMAT, columns.question=Question ...: see options data.train"
    parser.add_argument("words", nargs="*", default=[], metavar="a=b", help=words)
    parser.add_argument("--strict", action="store_true", help="fail when a row cannot be written, and write nothing")
    parser.add_argument("--force", action="store_true", help="write in the place of a file that is there")
    parser.add_argument("--json", action="store_true", help="print the account as JSON on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Convert."""
    from tunesmith.data.convert import Conversion, convert
    from tunesmith.recipe_text import read_words

    conversion = Conversion.of(arguments.input, read_words({}, arguments.words))
    account = convert(conversion, arguments.output, arguments.force, arguments.strict)
    if arguments.json:
        print(json.dumps(account.as_dict()))
        return 0
    print("\n".join(account.lines()))
    print(f"wrote {arguments.output}")
    return 0
