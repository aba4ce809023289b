"""Each export of one finished run: what it takes, what it makes, and what its check says.

    python benchmarks/exports.py RUN OUT
    python benchmarks/exports.py RUN OUT --only type=merged "type=gptq num_samples=16"

Every export is a process of its own, of `tunesmith export`. Its peak is the most memory that the process held, pages of
files included; the model beside it is the sum of its weight files. `OUT` gets a folder for each, which stays.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measure
from tunesmith.engine.model import resolve_path
from tunesmith.exports.merging.tensors import files_of
from tunesmith.generate.load import is_adapter, locate, named_base

EXPORTS = (
    "type=adapter",
    "type=merged",
    "type=merged dtype=float32",
    "type=merged max_shard_size=200MB",
    "type=gguf outtype=f16",
    "type=gguf outtype=q8_0",
    "type=gguf outtype=q4_0",
    "type=ollama outtype=q8_0",
    "type=bnb bits=4",
    "type=bnb bits=8",
    "type=torchao",
    "type=torchao scheme=float8_weight_only",
    "type=gptq",
    "type=awq",
    "type=onnx",
)
COLUMNS = ("export", "seconds", "peak GB", "times the model", "MB", "greedy", "largest difference", "nats", "notes")
KILOBYTE = 1 if sys.platform == "darwin" else 1024  # what a peak is counted in, in bytes


def main() -> None:
    """Make them all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("out", type=Path, help="folder that gets a folder for each")
    parser.add_argument("--only", nargs="+", default=list(EXPORTS), help="the words of each export")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    place = locate(str(options.run))
    model = named_base(place).path if is_adapter(place) else place
    size = sum(file.stat().st_size for file in files_of(Path(resolve_path(model))))
    rows = [row(words, options, size) for words in options.only]
    title = f"Exports of {options.run.name}, whose base model has {size / 1e9:.2f} GB of weights"
    measure.report(title, COLUMNS, rows, options.json)


def row(words: str, options: argparse.Namespace, size: int) -> tuple[Any, ...]:
    """One export."""
    folder = options.out / words.removeprefix("type=").replace(" ", ",")
    command = [sys.executable, "-m", "tunesmith", "export", str(options.run), str(folder), *words.split(), "--json"]
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None, "it was asked for"
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds, peak = time.monotonic() - begun, used.ru_maxrss * KILOBYTE
    print(f"{words}: {seconds:.0f} s, {peak / 1e9:.2f} GB, ended with {child.returncode}", file=sys.stderr)
    taken = (seconds, peak / 1e9, peak / size)
    if not folder.is_dir() or not said:
        return (words, *taken, None, None, None, None, "was not written")
    found = json.loads(said)
    files = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    greedy = "same" if found["same_greedy_tokens"] else f"{len(found['partings'])} of {found['prompts']} part"
    largest = f"{found['largest_logit_difference']:.2g} of {found['tolerance']:.2g}"
    return (words, *taken, files, greedy, largest, f"{found['divergence']:.1g}", "; ".join(found["notes"]))


if __name__ == "__main__":
    main()
