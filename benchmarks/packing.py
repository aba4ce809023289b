"""How full packed rows are at several sizes, how long packing takes, and what padding would waste on the same rows.

    python benchmarks/packing.py --model DIR --data FILE
    python benchmarks/packing.py --model DIR --rows 100000 --row-tokens 2048 4096

Padded: the share of real tokens when 8 samples, in random order, are padded to the longest of them.
"""

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import measure

COLUMNS = ("tokens a row", "samples", "tokens", "longest", "rows", "full", "padded by 8", "packing, s")
PADDED_BATCH = 8


def main() -> None:
    """Measure, and print the table."""
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="rows that are made")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a row that is made, on average")
    parser.add_argument("--row-tokens", type=int, nargs="*", default=[1024, 2048, 4096, 8192, 16384])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        data = arguments.data or str(Path(folder) / "rows.jsonl")
        if not arguments.data:
            measure.write_rows(Path(data), arguments.rows, arguments.tokens)
        rows = [measured(arguments.model, data, size, Path(folder) / "cache") for size in arguments.row_tokens]
    title = f"Packing {Path(data).name}; samples longer than a row are left out"
    measure.report(title, COLUMNS, rows, arguments.json)


def measured(model: str, data: str, row_tokens: int, cache: Path) -> tuple[int | float, ...]:
    """One line of the table: one epoch packed into rows of so many tokens."""
    from tunesmith.data import mix
    from tunesmith.data.batch import training_rows
    from tunesmith.data.prepare import prepare
    from tunesmith.engine.model import load_tokenizer
    from tunesmith.recipe import Recipe

    recipe = Recipe(
        model=model,
        data={"train": data, "max_tokens": row_tokens, "cache_dir": str(cache)},
        train={"row_tokens": row_tokens, "num_train_epochs": 1},
    )
    tokenizer = recipe.data.template.prepare(load_tokenizer(recipe.model))
    store = prepare(recipe, recipe.data.train, tokenizer)
    start = time.perf_counter()
    own = mix.parts(recipe.data.train, store, np.arange(len(store)))
    rows = training_rows(recipe, store, mix.epochs(recipe.data, own, store.lengths()))
    assert rows[len(rows) - 1], "an epoch may be planned when its rows are asked for"
    seconds = time.perf_counter() - start
    lengths = store.lengths()
    counts = (len(store), int(lengths.sum()), int(lengths.max()), len(rows))
    return row_tokens, *counts, rows.fill, padded_share(lengths), seconds


def padded_share(lengths: np.ndarray) -> float:
    """Real tokens over all positions when samples [M] are padded to the longest of their batch."""
    order = np.random.default_rng(0).permutation(lengths)
    batches = [order[start : start + PADDED_BATCH] for start in range(0, len(order), PADDED_BATCH)]
    return float(lengths.sum() / sum(len(batch) * batch.max() for batch in batches))


if __name__ == "__main__":
    main()
