"""`tunesmith serve`: an OpenAI-compatible server of a model."""

import argparse
import sys


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from tunesmith.serve import options

    parser.add_argument("path", metavar="MODEL_OR_RUN", help="run, checkpoint, adapter or model folder, or hub id")
    options.declare(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; a JSON line of each request goes to stdout."""
    from tunesmith.serve import options
    from tunesmith.serve.start import serve

    serve(
        arguments.path,
        options.read(arguments),
        lambda line: print(line, file=sys.stderr, flush=True),
        lambda line: print(line, flush=True),
    )
    return 0
