"""`tunesmith chat`: talk with a model in the terminal."""

import argparse
from pathlib import Path

from tunesmith.cli.main import natural, positive, warmth


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "path", metavar="MODEL_OR_RUN", help="run or model folder, hub id, builtin:tiny or http://HOST/v1"
    )
    parser.add_argument(
        "words", nargs="*", default=[], metavar="a=b", help="how answers are drawn: top_p=0.9; server.X=Y"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--against", metavar="MODEL", help="another model that answers too; base: the adapter's own")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON list of tools that the model may call")
    parser.add_argument("--max-new-tokens", type=positive, default=512, metavar="N", help="longest answer (512)")
    parser.add_argument(
        "--temperature", type=warmth, default=0.0, metavar="T", help="0, the default: the likeliest token"
    )
    parser.add_argument("--seed", type=natural, default=42, metavar="N", help="decides what is drawn (42)")


def run(arguments: argparse.Namespace) -> int:
    """Chat until the person leaves."""
    from tunesmith.generate.chat import read_tools
    from tunesmith.generate.endpoint import taken
    from tunesmith.generate.sampling import Sampling
    from tunesmith.generate.terminal import chat
    from tunesmith.recipe_text import read_words

    flags = [f"{name}={getattr(arguments, name)}" for name in ("max_new_tokens", "temperature", "seed")]
    words, server = taken(read_words({}, [*flags, *arguments.words]))
    tools = read_tools(arguments.tools) if arguments.tools else []
    chat(arguments.path, arguments.system, Sampling(**words), arguments.against, tools, server=server)
    return 0
