"""What the benchmarks share: rows that are made, contenders that take turns, a table that says where and with what."""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("tunesmith", "torch", "transformers", "peft", "tokenizers", "datasets", "numpy")
TOKENS_PER_WORD = 2.3
SYLLABLES = "ba ce di fo gu la me ni po ru sa te vi xo zu".split()


def seconds_in_turn(contenders: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, list[float]]:
    """The seconds that each contender took in each round; all take one turn a round, and an uncounted one before."""
    taken: dict[Any, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            if number:
                taken[name].append(seconds)
            print(f"round {number} of {rounds}: {name} took {seconds:.2f} s", file=sys.stderr)
    return taken


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as fast ours was as theirs: the median over the rounds, each compared with itself."""
    return statistics.median(their / our for our, their in zip(ours, theirs, strict=True))


def write_rows(path: Path, rows: int, tokens: int, seed: int = 0) -> None:
    """Write rows of instruction and output as JSON lines, of about so many of Qwen2.5's tokens each.

    Lengths spread as those of people's rows do: log-normal, a few of them several times the mean.
    """
    random_ = random.Random(seed)
    words = ["".join(random_.choices(SYLLABLES, k=random_.randint(1, 3))) for _ in range(2000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            length = max(4, int(tokens / TOKENS_PER_WORD * random_.lognormvariate(-0.125, 0.5)))
            said = random_.choices(words, k=length)
            row = {
                "instruction": f"{number}: {' '.join(said[: length // 4])}?",
                "output": " ".join(said[length // 4 :]),
            }
            file.write(json.dumps(row) + "\n")


def machine() -> dict[str, str]:
    """Where and with what something was measured."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {
        "command": f"python {' '.join(sys.argv)}",
        "processor": f"{os.cpu_count()} x {model}{load}",
        "versions": f"Python {platform.python_version()}, {versions}",
    }


def report(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], as_json: bool) -> None:
    """Print what was measured, as a Markdown table or as one JSON object."""
    rows = list(rows)
    if as_json:
        found = [dict(zip(columns, row, strict=True)) for row in rows]
        print(json.dumps({"title": title, **machine(), "rows": found}))
        return
    print(f"{title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(_shown(cell) for cell in row)} |")
    print()
    for name, text in machine().items():
        print(f"- {name}: `{text}`" if name == "command" else f"- {name}: {text}")


def _shown(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if cell >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="builtin:tiny", help="hub id or folder whose tokenizer and template are used")
    made.add_argument("--data", help="a file of rows; without it they are made")
    made.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    return made
