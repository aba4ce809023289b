"""What a million rows cost before the first step: rendering them once, and a start that finds them in the cache.

    python benchmarks/start.py --model DIR
    python benchmarks/start.py --model DIR --rows 100000

Each start is a process of its own, that does what `tunesmith train` does before it loads the model. Memory is the
largest sum over all its processes of what lies in the memory for each (RSS), looked at ten times a second. A start
ends when the first packed row is there.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import measure

COLUMNS = ("start", "libraries, s", "tokenizer, s", "rows, s", "memory, GB", "tokens", "packed rows")


def main() -> None:
    """Measure, and print the table."""
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that are made")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a row that is made, on average")
    parser.add_argument("--processes", type=int, help="that render; without it, as many as tunesmith chooses")
    parser.add_argument("--starts", type=int, default=3, help="starts from the cache")
    parser.add_argument("--folder", help="where rows and cache lie, and stay; without it, a folder that is removed")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(start(arguments)))
        return
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(arguments.folder or passing)
        folder.mkdir(parents=True, exist_ok=True)
        if not arguments.data:
            arguments.data = str(folder / "rows.jsonl")
            measure.write_rows(folder / "rows.jsonl", arguments.rows, arguments.tokens)
        rows = []
        for number in range(arguments.starts + 1):
            found = in_a_process(arguments, folder)
            rows.append([f"from the cache, {number}" if found.pop("cached") else "rendering", *found.values()])
            print(rows[-1], file=sys.stderr)
    title = f"{arguments.rows:,} rows of about {arguments.tokens} tokens"
    measure.report(title, COLUMNS, rows, arguments.json)


def in_a_process(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What `start` measured in a new process, and the most memory that its processes held."""
    import psutil

    command = [sys.executable, __file__, "--step", str(folder), "--model", arguments.model, "--data", arguments.data]
    command += ["--processes", str(arguments.processes)] if arguments.processes else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most = 0

    def watch() -> None:
        nonlocal most
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended just now
            root = psutil.Process(process.pid)
            while process.poll() is None:
                most = max(most, _resident_bytes(root))
                time.sleep(0.1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    said, _ = process.communicate()
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    found = json.loads(said)
    counts = {name: found.pop(name) for name in ("tokens", "packed_rows")}
    return found | {"memory_gb": most / 1e9} | counts


def _resident_bytes(root: Any) -> int:
    import psutil

    total = 0
    for one in (root, *root.children(recursive=True)) if root.is_running() else ():
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:  # it has ended
            continue
    return total


def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part of a start, and what came out."""
    clock = [time.perf_counter()]
    from tunesmith.data.load import load_rows
    from tunesmith.defaults import resolve
    from tunesmith.engine.device import choose
    from tunesmith.engine.model import load_tokenizer
    from tunesmith.engine.trainer import Trainer  # noqa: F401  # a run imports it
    from tunesmith.recipe import Recipe

    cache = Path(arguments.step) / "cache"
    before = set(cache.glob("*"))
    options = {"train": arguments.data, "max_tokens": 2048, "cache_dir": str(cache)}
    recipe = Recipe(model=arguments.model, data=options | {"num_processes": arguments.processes})
    recipe = resolve(recipe, choose("cpu")).recipe
    clock.append(time.perf_counter())
    tokenizer = recipe.data.template.prepare(load_tokenizer(recipe.model))
    clock.append(time.perf_counter())
    rows = load_rows(recipe, tokenizer)
    tokens = len(rows.train[0]["input_ids"])
    assert tokens, "the first row holds something"
    clock.append(time.perf_counter())
    libraries, tokenizer_, loaded = (end - begin for begin, end in zip(clock, clock[1:], strict=False))
    counts = {"tokens": rows.ledger["train"]["tokens"], "packed_rows": len(rows.train)}
    cached = set(cache.glob("*")) == before  # nothing was rendered
    return {"cached": cached, "libraries": libraries, "tokenizer": tokenizer_, "rows": loaded} | counts


if __name__ == "__main__":
    main()
