"""`tunesmith chat`: talk with a model in the terminal."""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", metavar="MODEL_OR_RUN", help="run folder, model folder, hub id or builtin:tiny")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (512)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0, the default, takes the likeliest token",
    )
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="decides what is drawn (42)")


def run(arguments: argparse.Namespace) -> int:
    """Chat until the person leaves."""
    from tunesmith.generate.chat import chat

    chat(arguments.path, arguments.system, arguments.max_new_tokens, arguments.temperature, arguments.seed)
    return 0
