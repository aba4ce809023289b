"""`tunesmith evaluate`: a model or a run, measured by tasks."""

import argparse
import json
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from tunesmith.component import names
    from tunesmith.seams import Task

    known = ", ".join(name for name in names(Task) if name != "lm_eval")
    words = "gsm8k.num_samples=9, device=cpu ...: see options task, options evaluate"
    parser.add_argument("path", metavar="MODEL_OR_RUN", help="run, checkpoint, adapter, model, hub id, http://HOST/v1")
    parser.add_argument("words", nargs="*", default=[], metavar="a=b", help=words)
    parser.add_argument("--task", required=True, metavar="TASK,...", help=f"{known}; lm-eval:NAME; a file or module")
    parser.add_argument("--against", metavar="MODEL", help="another model beside it; base: the one a run began with")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write results, items and pictures there")
    parser.add_argument("--fresh", action="store_true", help="compute again what the cache has")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print tables or JSON."""
    from tunesmith.evaluate import evaluate, read
    from tunesmith.evaluation import _report
    from tunesmith.parts import speaker

    tasks, how = read([one for one in arguments.task.split(",") if one], arguments.words)
    out, against, fresh = arguments.out, arguments.against, arguments.fresh
    found = evaluate(arguments.path, tasks, how, out, speaker(), against, fresh)
    print(json.dumps(found, ensure_ascii=False)) if arguments.json else _report.show(found)
    return 0
