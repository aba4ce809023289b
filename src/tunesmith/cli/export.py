"""`tunesmith export`: make a folder that other tools load of a finished run, and verify it."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from tunesmith.cli.main import aside, new_folder


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("out", type=new_folder, metavar="OUT", help="folder to write; must be new or empty")
    parser.add_argument("words", nargs="*", default=[], metavar="a=b", help="type=merged ...: see options export")
    parser.add_argument("--check", action="store_true", help="compare an export that is there with the run again")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Export. Returns 1 when the export does not write what the run's own weights write."""
    from tunesmith.errors import RecipeError
    from tunesmith.explain import choose
    from tunesmith.exports.checks.signature import signed
    from tunesmith.exports.merging.gathered import gathered
    from tunesmith.recipe_text import read_words
    from tunesmith.seams import Export

    if bare := next((word for word in arguments.words if "=" not in word), None):
        raise RecipeError(f"{bare!r} is not `section.option=value`. Did you mean 'type={bare}'?")
    said = signed(arguments.out)[0] if arguments.check else read_words({}, arguments.words)
    export = choose(Export, said)
    assert isinstance(export, Export)
    with gathered(arguments.run, arguments.out, arguments.check) as run, aside():
        report = (export.check if arguments.check else export.write)(run, arguments.out)
    if arguments.json:
        print(json.dumps({**asdict(report), "path": str(report.path), "passed": report.passed}))
    else:
        print(f"{'checked' if arguments.check else 'wrote'} {report.path}", *report.lines(), sep="\n")
    return 0 if report.passed else 1
