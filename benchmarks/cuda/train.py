"""Train models of the bars' shapes on one CUDA device, and measure tokens/s, MFU, memory and where the time goes.

    python benchmarks/cuda/train.py --out cuda.jsonl
    python benchmarks/cuda/train.py --out cuda.jsonl --data alpaca_en_demo.json --tokenizer DIR
    python benchmarks/cuda/train.py --out tiny.jsonl --device cpu --shape tiny --row-tokens 256

Weights are random; rows are made (log-normal lengths, 300 tokens on average), or those of a file. Each case is a
process of its own, so that one which fails is a line and nothing more. Lines are written as they come: a run that is
cut off has what it measured. After --minutes no further case is begun.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shapes import CASES, SHAPES, Case

PACKAGES = ("tunesmith", "torch", "transformers", "peft")
MOST_SECONDS = 180  # of one case
COLUMNS = ("case", "tokens/s", "MFU", "of what is computed", "peak GB", "data", "forward", "backward", "optimizer")


def main() -> None:
    """Measure every case that is asked for, and print the table."""
    words = parser().parse_args()
    if words.case:
        measure(words)
        return
    begun, lines = time.monotonic(), []
    for case in chosen(words.shape, words.only):
        left = 60 * words.minutes - (time.monotonic() - begun)
        line = in_process(case, left) if left > 0 else told(case, failed="not run: out of time (--minutes)")
        lines.append(line)
        with Path(words.out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    print(table(lines))


def parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", required=True, help="a file to which one JSON object a case is added")
    made.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    made.add_argument("--shape", choices=sorted(SHAPES), help="only cases of this shape; all but tiny without it")
    made.add_argument("--only", default="", help="only cases whose name has this in it, as 'float8' or 'kernels'")
    made.add_argument("--steps", type=int, default=12, help="steps that are measured, one row each")
    made.add_argument("--warmup", type=int, default=4, help="steps before that")
    made.add_argument("--row-tokens", type=int, default=4096)
    made.add_argument("--data", help="a file of rows, of any format that a recipe reads")
    made.add_argument(
        "--tokenizer", default="builtin:tiny", help="model folder or id whose tokenizer the file is read with"
    )
    made.add_argument("--minutes", type=float, default=8.5, help="no case is begun after these")
    made.add_argument("--case", help=argparse.SUPPRESS)
    return made


def chosen(shape: str | None, only: str) -> list[Case]:
    """The cases that the words name."""
    wanted = [case for case in CASES if (case.shape == shape if shape else case.shape != "tiny") and only in str(case)]
    if not wanted:
        sys.exit(f"--only {only}: no case has this in its name. There are: {'; '.join(map(str, CASES))}")
    return wanted


def in_process(case: Case, left_seconds: float) -> dict[str, Any]:
    """A case's line, from a process that is given the same words; its last line is what it found."""
    print(f"{case} ...", file=sys.stderr, flush=True)
    begun, most = time.monotonic(), min(left_seconds, MOST_SECONDS)
    command = [sys.executable, *sys.argv, "--case", case.to_json()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=most)
    except subprocess.TimeoutExpired:
        return told(case, failed=f"stopped after {most:.0f} s")
    took = {"process_seconds": round(time.monotonic() - begun, 1)}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        print(done.stderr[-4000:], file=sys.stderr)
        return told(case, failed=last, **took)
    return told(case, **took, **json.loads(done.stdout.strip().splitlines()[-1]))


def told(case: Case, **found: Any) -> dict[str, Any]:
    """A line of the file."""
    return {"case": str(case), "date": datetime.now(UTC).isoformat(timespec="seconds"), **vars(case), **found}


def measure(words: argparse.Namespace) -> None:
    """Measure one case in this process, and print it as the last line."""
    from case import kernels, trained
    from shapes import made_rows, rows_of_file

    one = Case(**json.loads(words.case))
    number = words.warmup + words.steps if one.method != "kernels" else 1
    if words.data:
        rows = list(rows_of_file(words.data, words.tokenizer, number, words.row_tokens))
    else:
        rows = list(made_rows(number, words.row_tokens))
    found = (kernels if one.method == "kernels" else trained)(one, words.device, rows, words.warmup)
    print(json.dumps(about(words) | found))


def about(words: argparse.Namespace) -> dict[str, Any]:
    """Where, on what and with what."""
    import torch

    cuda = words.device == "cuda"
    rows = f"{words.data} by the tokenizer of {words.tokenizer}" if words.data else "made"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "versions": {name: version(name) for name in PACKAGES},
        "row_tokens": words.row_tokens,
        "rows": rows,
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines for people, in Markdown."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    rows += [_cells(line) for line in lines if line["method"] != "kernels"]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    for line in lines:
        if line["method"] == "kernels" and "failed" not in line:
            shown = {name: line[name] for name in ("tokens", "products", "attention")}
            text += f"\n\n{line['case']} (TFLOP/s; ms)\n{json.dumps(shown, indent=1)}"
    return text


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    if "failed" in line:
        return line["case"], line["failed"], *[""] * (len(COLUMNS) - 2)
    shares = (f"{line['share'][part]:.1%}" for part in COLUMNS[5:])
    numbers = f"{line['tokens_per_second']:,.0f}", f"{line['mfu']:.1%}", f"{line['mfu_of_what_is_computed']:.1%}"
    return line["case"], *numbers, f"{line['peak_memory_gb']:.1f}", *shares


if __name__ == "__main__":
    main()
