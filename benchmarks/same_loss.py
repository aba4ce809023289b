"""The first step's loss and gradient norm of transformers' Trainer and of tunesmith, on one and the same batch.

    python benchmarks/same_loss.py --model DIR --data FILE --rows 4
    python benchmarks/same_loss.py --model DIR --adapter full

Both train the same tokens in one step in float32, transformers' Trainer padded, ours packed. The tokens, and which of
them are learned, are ours for both: what the usual scripts learn beside an answer (the line end after it) is a choice,
and no difference of arithmetic. New low-rank updates begin at zero, which would hide half of their gradients, so both
are given the same random ones. Exits with 1 when a number differs by more than the allowed share.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import measure
import peers

ALLOWED = 1e-3
COLUMNS = ("what", "transformers", "tunesmith", "relative difference")
TOO_MANY = 1_000_000  # tokens of a row that holds all samples


def main() -> None:
    """Compare, and print the table."""
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=4, help="rows in the batch")
    parser.add_argument("--adapter", choices=["lora", "full"], default="lora")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of the longest row, at most")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        rows = compared(options, Path(name))
    title = f"One step on {options.rows} rows in float32, adapter: {options.adapter}"
    measure.report(title, COLUMNS, rows, options.json)
    if any(row[-1] > ALLOWED for row in rows):
        sys.exit(f"a relative difference is above {ALLOWED}")


def compared(options: argparse.Namespace, folder: Path) -> list[tuple[str, float, float, float]]:
    """One line for the loss and one for the gradient norm."""
    from tunesmith.engine.model import resolve_path

    data = Path(options.data) if options.data else folder / "rows.jsonl"
    if not options.data:
        measure.write_rows(data, options.rows, 20)
    options.model, options.data = resolve_path(options.model), str(data)
    ours, tokens = tunesmith_step(options, folder)
    theirs = transformers_step(options, folder, tokens)
    return [
        (name, theirs[name], ours[name], abs(ours[name] - theirs[name]) / abs(theirs[name]))
        for name in ("loss", "grad_norm")
    ]


def tunesmith_step(options: argparse.Namespace, folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The loss and gradient norm of one step of ours, and the tokens that it was given, as ids and labels."""
    from tunesmith.defaults import resolve
    from tunesmith.engine.device import choose
    from tunesmith.parts import Given, Job, load, make_trainer
    from tunesmith.recipe import Recipe

    lora = {"type": "lora", "r": 8, "lora_alpha": 16}
    recipe = Recipe(
        model={"path": options.model, "dtype": "float32"},
        data={
            "train": [{"path": options.data, "num_samples": options.rows}],
            "max_tokens": options.max_length,
            "cache_dir": str(folder / "cache"),
        },
        adapter=lora if options.adapter == "lora" else "full",
        train={"max_steps": 1, "row_tokens": TOO_MANY, "device": "cpu", "bf16": False, "lr_scheduler_type": "constant"},
    )
    device = choose("cpu")
    with contextlib.ExitStack() as until_the_end:
        job = Job(recipe, resolve(recipe, device), device, Given(), None, lambda line: None)
        loaded = load(job, None, None, until_the_end)
        give_updates(loaded.model)
        (folder / "ours").mkdir()
        make_trainer(job, folder / "ours", loaded, ()).train()
        tokens = ids_and_labels(loaded.rows.train[0])
    line = json.loads((folder / "ours" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return {name: line[name] for name in ("loss", "grad_norm")}, tokens


def ids_and_labels(row: Any) -> list[dict[str, Any]]:
    """The sequences of a packed row as transformers has them: a label is at its own token's place, -100 at others."""
    found, start = [], 0
    for length in row["lengths"]:
        ids, weight = (row[name][start : start + length] for name in ("input_ids", "weight"))
        learned = weight[:-1] != 0  # [length - 1] whether the token after each place is
        labels = [-100, *np.where(learned, ids[1:], -100).tolist()]
        found.append({"input_ids": ids.tolist(), "labels": labels})
        start += length
    return found


def transformers_step(options: argparse.Namespace, folder: Path, tokens: list[dict[str, Any]]) -> dict[str, float]:
    """The loss and gradient norm of one step of transformers' Trainer."""
    words = {"model": options.model, "data": options.data, "steps": 1, "batch-size": len(tokens)}
    words |= {"adapter": options.adapter, "lora-r": 8, "lora-alpha": 16, "dtype": "float32"}
    argv = ["hf", *(word for name, value in words.items() for word in (f"--{name}", str(value)))]
    clock = peers.Clock("cpu")
    trainer = peers.build(peers.read_options(argv), str(folder / "theirs"), clock, tokens)
    give_updates(trainer.model)
    trainer.train()
    return {name: clock.lines[0][name] for name in ("loss", "grad_norm")}


def give_updates(model: Any) -> None:
    """Give low-rank updates the same random numbers in every model."""
    import torch

    random = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data.normal_(0.0, 0.02, generator=random)


if __name__ == "__main__":
    main()
