"""`tunesmith score`: rank answers by a reward model, or say the classes of texts."""

import argparse
import json
import sys

from tunesmith.cli.main import UsageError, natural, positive, warmth


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", metavar="MODEL_OR_RUN", help="reward model, classifier: run, folder, hub id, address")
    parser.add_argument("file", metavar="FILE", help="rows: prompt and answers, pairs, conversations, or texts")
    parser.add_argument("words", nargs="*", default=[], metavar="a=b", help="how a server is asked: server.X=Y")
    parser.add_argument("--sample", type=positive, metavar="N", help="rank N answers that --model makes, not the row's")
    parser.add_argument("--model", metavar="MODEL_OR_RUN", help="the model that answers")
    parser.add_argument("--temperature", type=warmth, default=1.0, metavar="T", help="of its answers (1)")
    parser.add_argument("--max-new-tokens", type=positive, default=256, metavar="N", help="longest answer (256)")
    parser.add_argument("--seed", type=natural, default=42, metavar="N", help="decides what is drawn (42)")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="a word of train.device (auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a row")


def run(arguments: argparse.Namespace) -> int:
    """Score every row."""
    if (arguments.sample is None) != (arguments.model is None):
        missing = "--model MODEL_OR_RUN" if arguments.model is None else "--sample N"
        raise UsageError(f"--sample and --model go together: say {missing} too")
    from tunesmith.generate import addressed, endpoint, judge

    opened = judge.find(arguments.path, server := endpoint.server_of(arguments.words), arguments.device)
    if arguments.sample is None:
        rows = judge.score(opened, arguments.file)
    else:
        options = {name: getattr(arguments, name) for name in ("temperature", "max_new_tokens", "seed")}
        model = addressed.answering(arguments.model, server, arguments.device)
        rows = judge.sampled(opened, model, arguments.file, arguments.sample, **options)
    for row in judge.accounted(rows, lambda line: print(line, file=sys.stderr)):
        print(json.dumps(row, ensure_ascii=False) if arguments.json else "\n".join(judge.lines(row)))
    return 0
