"""`tunesmith predict`: a data set through a model, and how like its answers are to those that are known."""

import argparse
import json
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", metavar="MODEL_OR_RUN", help="run, checkpoint, adapter, model, hub id, http://HOST/v1")
    parser.add_argument("file", nargs="?", metavar="FILE", help="rows to answer; without it those a run held out")
    parser.add_argument(
        "words", nargs="*", default=[], metavar="a=b", help="max_new_tokens=64 ...: see options predict"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="write answers and results there")
    parser.add_argument("--against", metavar="MODEL", help="another model to answer the rows; base: the adapter's own")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Answer, measure, and print a table or JSON."""
    from tunesmith.parts import speaker
    from tunesmith.prediction import report
    from tunesmith.prediction.options import Prediction
    from tunesmith.prediction.predict import predict
    from tunesmith.recipe_text import read_words

    file, words = arguments.file, arguments.words
    if file is not None and "=" in file and not Path(file).exists():
        file, words = None, [file, *words]
    how = Prediction(**read_words({}, words))
    found = predict(arguments.path, file, arguments.out, how, arguments.against, speaker())
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    report.show(found)
    print(f"every answer, and this page: {arguments.out / 'predictions.jsonl'}, {arguments.out / 'results.md'}")
    return 0
