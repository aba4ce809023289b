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
        "words", nargs="*", default=[], metavar="a=b", help="how answers are drawn, as in top_p=0.9: see options chat"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--against", metavar="MODEL", help="another model that answers too; base: the adapter's own")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON list of tools that the model may call")
    parser.add_argument("--max-new-tokens", type=positive, default=512, metavar="N", help="longest answer (512)")
    parser.add_argument(
        "--temperature", type=warmth, default=0.0, metavar="T", help="0, the default: the likeliest token"
    )
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="a word of train.device (auto)")
    parser.add_argument("--seed", type=natural, default=42, metavar="N", help="decides what is drawn (42)")


def run(arguments: argparse.Namespace) -> int:
    """Chat until the person leaves."""
    from tunesmith.generate.asked import Chatting
    from tunesmith.generate.chat import read_tools
    from tunesmith.generate.terminal import chat
    from tunesmith.recipe_text import read_words

    flags = [f"{name}={getattr(arguments, name)}" for name in ("max_new_tokens", "temperature", "seed", "device")]
    how = Chatting(**read_words({}, [*flags, *arguments.words]))
    tools = read_tools(arguments.tools) if arguments.tools else []
    return 0 if chat(arguments.path, arguments.system, how, arguments.against, tools) else 1
