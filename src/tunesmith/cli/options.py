"""`tunesmith options`: every option with its type, bound, default and help, read from its declaration."""

import argparse
import json
import sys
from typing import Any


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    words = "train, lora, train.max_steps, chat, gsm8k ...; or all"
    parser.add_argument("section", nargs="?", default="", metavar="SECTION", help=words)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--schema", action="store_true", help="print the JSON Schema of a recipe, for editors")
    kind.add_argument("--markdown", action="store_true", help="print the reference page")
    kind.add_argument("--compatibility", action="store_true", help="print which components go together, as a page")


def run(arguments: argparse.Namespace) -> int:
    """Print. Raises RecipeError when there is no such section or option."""
    from tunesmith import schema, together
    from tunesmith.evaluate import Evaluation
    from tunesmith.generate.asked import Chatting
    from tunesmith.launching import Launcher
    from tunesmith.prediction.options import Prediction
    from tunesmith.recipe import Recipe
    from tunesmith.seams import Export, Task
    from tunesmith.synthesis.options import Synthesis

    if arguments.schema or arguments.compatibility:
        print(json.dumps(schema.json_schema(Recipe), indent=2) if arguments.schema else together.page())
        return 0
    verbs: Any = {"synthesize": Synthesis, "evaluate": Evaluation, "predict": Prediction, "chat": Chatting}
    groups = schema.groups(Recipe, export=Export, **verbs, task=Task, launcher=Launcher)
    found = schema.choose(groups, arguments.section)
    if arguments.markdown:
        print("\n".join(schema.as_markdown(found)))
        return 0
    schema.show(found) if sys.stdout.isatty() else print("\n".join(schema.as_lines(found)))
    return 0
