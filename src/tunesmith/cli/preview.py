"""`tunesmith preview`: the rows as the model will see them."""

import argparse

from tunesmith.cli.main import positive


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="recipe file or shipped recipe's name")
    parser.add_argument("words", nargs="*", default=[], metavar="a.b=c", help="options to change")
    parser.add_argument("--rows", type=positive, metavar="N", help="samples to show (5; page 100; JSON all)")
    parser.add_argument("--all", action="store_true", help="count every row in the ledger")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--html", metavar="FILE", help="write one self-contained page")
    form.add_argument("--json", action="store_true", help="print one JSON object a sample, then the ledger")


def run(arguments: argparse.Namespace) -> int:
    """Show samples and the ledger."""
    from tunesmith.folder import look_for_files
    from tunesmith.recipe import Recipe

    recipe = Recipe.load(arguments.recipe, arguments.words)
    look_for_files(recipe)
    from tunesmith.data import page, preview
    from tunesmith.engine.encoder_decoder import ready

    recipe, tokenizer = ready(recipe)
    rows = arguments.rows or (None if arguments.json else 100 if arguments.html else 5)
    shown = preview.Preview(recipe, tokenizer, rows, arguments.all)
    if arguments.html:
        page.write(arguments.html, shown, str(recipe.name))
        print(f"wrote {arguments.html}")
    elif arguments.json:
        for line in preview.json_lines(shown):
            print(line)
    else:
        preview.show(shown)
    return 0
