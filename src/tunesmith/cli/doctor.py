"""`tunesmith doctor`: what works on this machine, and how to get what is missing."""

import argparse
import json


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    parser.add_argument(
        "--selftest",
        action="store_true",
        help="train every objective with every adapter on the built-in model: minutes",
    )


def run(arguments: argparse.Namespace) -> int:
    """Examine. Returns 1 when something that every run needs is missing."""
    from tunesmith import health

    if arguments.selftest:
        return _selftest(arguments.json)
    facts = health.examine()
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(health.lines(facts)))
    return 0 if health.healthy(facts) else 1


def _selftest(as_json: bool) -> int:
    """Try every pair of components. Returns 1 when one fails."""
    from dataclasses import asdict

    from tunesmith import selftest
    from tunesmith.parts import speaker

    found = selftest.run(speaker())
    print(json.dumps([asdict(one) for one in found]) if as_json else "\n".join(selftest.lines(found)))
    return int(any(one.status == "failed" for one in found))
