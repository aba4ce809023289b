"""`tunesmith doctor`: what works on this machine, and how to get what is missing."""

import argparse
import json


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Examine. Returns 1 when something that every run needs is missing."""
    from tunesmith import health

    facts = health.examine()
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(health.lines(facts)))
    return 0 if health.healthy(facts) else 1
