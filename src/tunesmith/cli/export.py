"""`tunesmith export`: make a folder that other tools load of a finished run, and verify it."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must be new or empty")
    parser.add_argument(
        "words", nargs="*", default=[], metavar="a=b", help="type=merged and its options: see options export"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Export. Returns 1 when the export does not write what the run's own weights write."""
    from tunesmith.explain import choose
    from tunesmith.recipe_text import read_words
    from tunesmith.seams import Export

    export = choose(Export, read_words({}, arguments.words))
    assert isinstance(export, Export)
    report = export.write(arguments.run, arguments.out)
    if arguments.json:
        facts = {**asdict(report), "path": str(report.path), "passed": report.passed}
        print(json.dumps(facts))
    else:
        other = f"other {report.compared} at {len(report.partings)} {'ties' if report.passed else 'places'} than"
        tokens = f"the same {report.compared} as" if report.same_greedy_tokens else other
        print(f"wrote {report.path}")
        print(f"verified on {report.prompts} prompts: {tokens} the run; largest logit difference")
        print(f"{report.largest_logit_difference:.3g} (allowed {report.tolerance:.3g})")
    return 0 if report.passed else 1
