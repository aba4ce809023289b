"""Tokens a second of rendering, against the bare tokenizer and against datasets.map, on the same rows in turn.

    python benchmarks/render.py --model DIR --data FILE
    python benchmarks/render.py --model DIR --rows 20000 --threads all

tokenizer               the tokenizer's own batched call on the finished texts: ids, and nothing else
tokenizer with offsets  the same with the characters of each token, which is what a mask needs
tunesmith               format, template, ids, offsets and mask of rows in the memory
datasets.map            the tokenizer's own batched call on the finished texts, by datasets, to its file
tunesmith to a store    the whole of it, from the file of rows to the store that a run reads

The last two in one process and in more. The tokenizer's texts are made before the clock starts: only tunesmith pays
for its template. `--threads 1` keeps the tokenizers library from starting threads of its own.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure

BARE, MAP, STORE = "tokenizer", "datasets.map", "tunesmith to a store"
COLUMNS = ("contender", "processes", "tokens/s", "of the tokenizer", "of datasets.map")
TOO_MANY = 10_000_000  # tokens of a sample: none is dropped

Turns = dict[tuple[str, int], Callable[[], object]]


def main() -> None:
    """Measure, and print the table."""
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=5000, help="rows that are made, or taken of --data")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a row that is made, on average")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--threads", choices=["1", "all"], default="1", help="of the tokenizers library")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if arguments.threads == "all" else "false"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        tokens, contenders = prepared(arguments, Path(folder))
        taken = measure.seconds_in_turn(contenders, arguments.rounds)
    rows = []
    for (name, processes), seconds in taken.items():
        of_map = measure.ratio(seconds, taken[MAP, processes]) if name == STORE else None
        rate = tokens / statistics.median(seconds)
        rows.append((name, processes, rate, measure.ratio(seconds, taken[BARE, 1]), of_map))
    title = (
        f"Rendering {tokens:,} tokens; median of {arguments.rounds} rounds; tokenizer's threads: {arguments.threads}"
    )
    measure.report(title, COLUMNS, rows, arguments.json)


def prepared(arguments: argparse.Namespace, folder: Path) -> tuple[int, Turns]:
    """The tokens of the rows, and what is to be timed, by name and number of processes."""
    from tunesmith.data import render
    from tunesmith.data.source import read
    from tunesmith.engine.model import load_tokenizer
    from tunesmith.recipe import Recipe

    source: dict[str, Any] = {"path": arguments.data, "num_samples": arguments.rows}
    if not arguments.data:
        source = {"path": str(folder / "rows.jsonl")}
        measure.write_rows(folder / "rows.jsonl", arguments.rows, arguments.tokens)
    recipe = Recipe(model=arguments.model, data={"train": [source], "max_tokens": TOO_MANY})
    template = recipe.data.template
    tokenizer = template.prepare(load_tokenizer(recipe.model))
    renderer = render.Renderer(recipe.data, recipe.objective, tokenizer)
    chunks = list(render.chunks(recipe.data.train[0], read(recipe.data.train[0])))
    texts = []
    for rows, format_ in chunks:
        samples = [format_.read(row) for _, row in rows]
        texts.append([template.write(one.branches[0], one.tools, tokenizer).text for one in samples])
    tokens = sum(len(ids) for batch in texts for ids in _call(tokenizer, batch)["input_ids"])

    def bare(**options: bool) -> None:
        for batch in texts:
            _call(tokenizer, batch, **options)

    def tunesmith() -> None:
        ours = 0
        for number, (rows, format_) in enumerate(chunks):
            made = renderer.render(rows, format_, number == 0)
            ours += sum(len(branch) for one in made for branch in one.branches)
        assert ours == tokens, f"{ours} tokens of ours, and {tokens} of the bare tokenizer"

    contenders: Turns = {
        (BARE, 1): bare,
        (f"{BARE} with offsets", 1): lambda: bare(return_offsets_mapping=True),
        ("tunesmith", 1): tunesmith,
    }
    for processes in arguments.processes:
        contenders[MAP, processes] = _map(texts, tokenizer, processes, folder)
        contenders[STORE, processes] = _store(recipe, tokenizer, processes, folder)
    return tokens, contenders


def _call(tokenizer: Any, texts: Sequence[str], **options: bool) -> Any:
    return tokenizer(list(texts), add_special_tokens=False, verbose=False, **options)


def _map(texts: Sequence[Sequence[str]], tokenizer: Any, processes: int, folder: Path) -> Callable[[], object]:
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"text": [text for batch in texts for text in batch]})

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            rows.map(
                lambda batch: _call(tokenizer, batch["text"]),
                batched=True,
                batch_size=len(texts[0]),
                num_proc=processes if processes > 1 else None,
                cache_file_name=f"{place}/rows.arrow",
                load_from_cache_file=False,
            )

    return run


def _store(recipe: Any, tokenizer: Any, processes: int, folder: Path) -> Callable[[], object]:
    from tunesmith.data.prepare import prepare

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
            data = recipe.data.model_copy(update={"num_processes": processes, "cache_dir": place})
            prepare(recipe.model_copy(update={"data": data}), data.train, tokenizer)

    return run


if __name__ == "__main__":
    main()
