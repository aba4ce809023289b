"""`tunesmith bench --against`: other trainers and this one take turns on the same rows, each in a process of its own.

The peers run in benchmarks/peers.py, which is no part of the package: it imports what this package does not.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.component import name_of
from tunesmith.defaults import resolve
from tunesmith.errors import RecipeError, RunError, near
from tunesmith.formats.messages import Messages
from tunesmith.formats.pairs import Pairs
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers.py"
NEEDS = {"hf": "peft", "trl": "trl", "trl-pack": "trl", "trl-dpo": "trl"}  # what a peer's Python must have
OF_PAIRS = ("trl-dpo",)  # peers that learn from pairs
VARIANTS = {"unshared": "data.shared_prefix=false", "in-step": "reference.compute=step"}  # of ours
OURS = "tunesmith"
PACK_TOKENS = 2048  # TRL packs into rows of at least so many
KEPT = ("template", "max_tokens", "window_samples")  # options of data that hold for all contenders


@dataclass(frozen=True)
class Length:
    """How much is measured: optimizer steps of ours, those before them, and turns of each contender."""

    steps: int
    warmup: int
    rounds: int


@dataclass(frozen=True)
class Peers:
    """Which other trainers, the Python they run in, and the rows of their batch."""

    names: tuple[str, ...]
    python: str
    batch_size: int

    @classmethod
    def of(cls, text: str, python: str, batch_size: int) -> "Peers":
        """The peers of a list with commas.

        Raises:
            RunError: a peer is unknown, or what it needs is not installed in that Python, or the script is not there.
        """
        names = tuple(text.split(","))
        for name in names:
            if name not in NEEDS and name not in VARIANTS:
                raise RunError(f"--against: there is no trainer {name!r}. {near(name, [*NEEDS, *VARIANTS])}")
        others = [name for name in names if name in NEEDS]
        if others and not SCRIPT.is_file():
            raise RunError(
                f"--against runs benchmarks/peers.py of tunesmith's source, and {SCRIPT} is not there: "
                "run it from a checkout that is installed with pip install --editable"
            )
        for package in dict.fromkeys(NEEDS[name] for name in others):
            _look_for(package, python)
        return cls(names, python, batch_size)


def _look_for(package: str, python: str) -> None:
    try:
        done = subprocess.run([python, "-c", f"import {package}"], capture_output=True, text=True)
    except OSError as error:
        raise RunError(f"--peer-python: {python} does not run: {error.strerror}") from error
    if done.returncode:
        reason = (done.stderr.splitlines() or ["it says nothing"])[-1]
        raise RunError(
            f"--against needs {package}, which {python} cannot import ({reason}): install it there, "
            "or name another Python with --peer-python"
        )


def compare(recipe: Recipe, peers: Peers, length: Length, say: Callable[[str], None]) -> dict[str, Any]:
    """Every contender's numbers in every round, and the ratios of ours to each peer's, as a JSON object.

    All make one pass over the same rows in the order of their files: as many as fill ours' steps.

    Raises:
        RecipeError: the peers cannot do what the recipe says.
        RunError: a contender failed.
    """
    from tunesmith.engine.device import choose

    resolved = resolve(recipe, choose(recipe.train.device)).recipe
    _refuse_what_peers_cannot(resolved, peers)
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as name:
        folder = Path(name)
        rows = _write_rows(resolved, length, folder)
        commands = _commands(resolved, peers, length, rows, folder)
        say(f"{rows.number} rows of {rows.tokens:,} tokens, as {rows.steps} steps of {OURS}")
        found: dict[str, list[dict[str, Any]]] = {contender: [] for contender in commands}
        for turn in range(length.rounds):
            for contender, command in commands.items():
                result = _in_process(contender, command)
                found[contender].append(_our_terms(result) if contender not in NEEDS else _their_terms(result))
                rate = found[contender][-1]["tokens_per_second"]
                say(f"round {turn + 1} of {length.rounds}: {contender}: {rate:,.1f} real tokens/s")
    for contender, turns in found.items():
        if turns[0]["run_tokens"] != rows.tokens and not _compares(resolved):
            say(f"note: {contender} saw {turns[0]['run_tokens']:,} tokens of these rows, and not {rows.tokens:,}")
    summary = [_summary(contender, turns, found[OURS]) for contender, turns in found.items()]
    return {"rows": rows.number, "tokens": rows.tokens, "contenders": summary, "rounds": found}


def _compares(recipe: Recipe) -> bool:
    """Whether samples are pairs, whose prompt some contenders compute once and others twice."""
    return len(type(recipe.objective).branches) > 1


def _refuse_what_peers_cannot(recipe: Recipe, peers: Peers) -> None:
    adapter: Any = recipe.adapter
    kind, objective = name_of(adapter), name_of(recipe.objective)
    for name in peers.names:
        wanted = "dpo" if name in OF_PAIRS else "sft"
        if name in NEEDS and (objective != wanted or kind not in ("lora", "full")):
            raise RecipeError(
                f"bench --against {name} compares objective={wanted} with adapter=lora or full, and this recipe has "
                f"{objective} with {kind}"
            )
    same = {"target_modules": "all-linear", "lora_dropout": 0.0, "modules_to_save": ()} if kind == "lora" else {}
    for option, value in same.items():
        if getattr(adapter, option) != value:
            raise RecipeError(
                f"adapter.{option}: bench --against compares with {value!r} (it was {getattr(adapter, option)!r})"
            )


@dataclass(frozen=True)
class _Rows:
    """The rows that every contender gets."""

    file: Path
    number: int
    tokens: int
    steps: int  # of ours, for all of them


def _write_rows(recipe: Recipe, length: Length, folder: Path) -> _Rows:
    """Write the first rows that ours would train on, as many as fill its steps, as messages in the files' order."""
    from tunesmith.data.load import load_rows
    from tunesmith.engine.model import load_tokenizer

    train = recipe.train
    per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps
    assert isinstance(train.row_tokens, int), "resolved before"
    room = (length.steps + length.warmup) * per_step * train.row_tokens
    tokenizer = recipe.data.template.prepare(load_tokenizer(recipe.model))
    file, number, tokens = folder / "rows.jsonl", 0, 0
    with file.open("w", encoding="utf-8") as out:
        for sample, count in _samples(recipe, tokenizer):
            if tokens + count > room:
                break
            out.write(json.dumps((Pairs() if _compares(recipe) else Messages()).write(sample)) + "\n")
            number, tokens = number + 1, tokens + count
    if not number:
        raise RecipeError(f"data.train: no row of {recipe.data.train[0].path} can be given to every trainer")
    (folder / "recipe.yaml").write_text(_recipe_on(recipe, file), encoding="utf-8")
    rows = load_rows(Recipe.load(str(folder / "recipe.yaml")), tokenizer)
    rows.close()
    steps = -(-len(rows.train) // per_step)
    if steps <= length.warmup:
        raise RecipeError(
            f"data.train: {number} rows of {tokens} tokens fill {steps} steps of {train.row_tokens} tokens a row, and "
            f"{length.warmup} warm up: lower train.row_tokens"
        )
    return _Rows(file, number, tokens, steps)


def _samples(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[Any, int]]:
    """The samples of one part that end with the assistant, and the tokens that they take in a row."""
    from tunesmith.data import registry, render
    from tunesmith.data.shared import own_tokens
    from tunesmith.data.source import read

    recipe = registry.applied(recipe)
    renderer = render.Renderer(recipe.data, recipe.objective, tokenizer)
    for source in recipe.data.train:
        for number, (chunk, format_) in enumerate(render.chunks(source, read(source))):
            by_place: dict[str, list[Any]] = {}
            for one in renderer.render(chunk, format_, number == 0):
                by_place.setdefault(one.where, []).append(one)
            for where, row in chunk:
                parts = by_place.get(where, [])
                if len(parts) != 1 or parts[0].dropped is not None or parts[0].truncated:
                    continue
                sample = format_.read(row)
                wanted = len(type(recipe.objective).branches)
                ends = {turns[-1].role for turns in sample.branches}
                if len(sample.branches) == wanted and not sample.is_document and ends == {"assistant"}:
                    yield sample, own_tokens(parts[0].branches)


def _recipe_on(recipe: Recipe, file: Path) -> str:
    """The recipe on the rows of a file, in their order, one pass, the last answer of each learned, as YAML."""
    import yaml

    tree = recipe.model_dump(mode="json", exclude={"eval"})
    tree["data"] = {name: tree["data"][name] for name in KEPT} | {
        "train": [{"path": str(file), "format": "pairs" if _compares(recipe) else "messages"}],
        "loss": {"turns": "last"},
        "shuffle": False,
        "cache_dir": str(file.parent / "cache"),
    }
    tree["train"] |= {"num_train_epochs": 1, "max_steps": None, "output_dir": None}
    return yaml.safe_dump(tree, allow_unicode=True)


def _commands(recipe: Recipe, peers: Peers, length: Length, rows: _Rows, folder: Path) -> dict[str, list[str]]:
    """The command of each contender, ours first."""
    from tunesmith.engine.model import resolve_path

    adapter: Any = recipe.adapter
    ours = [sys.executable, "-m", "tunesmith", "bench", str(folder / "recipe.yaml"), "--json"]
    ours += ["--warmup", str(length.warmup), "--steps", "0"]
    options = {
        "model": resolve_path(recipe.model.path),
        "data": rows.file,
        "rows": rows.number,
        "steps": 0,  # one pass
        "warmup": length.warmup,
        "batch-size": peers.batch_size,
        "max-length": recipe.data.max_tokens,
        "pack-length": max(PACK_TOKENS, recipe.data.max_tokens),
        "dtype": recipe.model.dtype,
        "device": recipe.train.device,
        "learning-rate": recipe.optimizer.learning_rate,
        "adapter": name_of(adapter),
    }
    if name_of(adapter) == "lora":
        options |= {"lora-r": adapter.r, "lora-alpha": adapter.lora_alpha}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    variants = {name: [*ours, VARIANTS[name]] for name in peers.names if name in VARIANTS}
    others = {name: [peers.python, str(SCRIPT), name, *words] for name in peers.names if name in NEEDS}
    return {OURS: ours} | variants | others


def _in_process(contender: str, command: list[str]) -> dict[str, Any]:
    """What a contender prints as its last line. Raises RunError when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise RunError(f"{contender} ended with {done.returncode}: {said}")
    return json.loads(done.stdout.splitlines()[-1])


def _our_terms(found: Mapping[str, Any]) -> dict[str, Any]:
    places = found["tokens"] + found["padded_tokens"]
    return {**found, "padded_share": found["padded_tokens"] / places}


def _their_terms(found: Mapping[str, Any]) -> dict[str, Any]:
    """A peer's line under the names of ours; all that it said beside them."""
    memory = found["peak_rss_gb"] if found["peak_cuda_gb"] is None else found["peak_cuda_gb"]
    return {
        **found,
        "tokens_per_second": found["real_tokens_per_s"],
        "trained_tokens_per_second": found["supervised_tokens_per_s"],
        "samples_per_second": found["samples_per_s"],
        "whole_tokens_per_second": found["real_tokens_per_s"],
        "padded_share": 1 - found["real_tokens"] / found["padded_tokens"],
        "peak_memory_bytes": memory * 1e9,
    }


def _summary(contender: str, turns: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over the rounds; a ratio is that of a round, so that what else the machine does counts for both.

    What is compared are the tokens of whole sequences a second, those too that a contender need not compute again: the
    samples of the counted steps are not the same ones for all, and long ones take longer.
    """

    def median(name: str) -> float:
        return statistics.median(turn[name] for turn in turns)

    def ratios(name: str) -> list[float]:
        return [our[name] / their[name] for our, their in zip(ours, turns, strict=True)]

    return {
        "contender": contender,
        "tokens_per_second": median("tokens_per_second"),
        "trained_tokens_per_second": median("trained_tokens_per_second"),
        "samples_per_second": median("samples_per_second"),
        "padded_share": median("padded_share"),
        "peak_memory_bytes": median("peak_memory_bytes"),
        "first_loss": turns[0]["first_loss"],
        "times_as_fast": statistics.median(ratios("whole_tokens_per_second")),
        "share_of_memory": statistics.median(ratios("peak_memory_bytes")),
        "times_as_fast_by_round": ratios("whole_tokens_per_second"),
    }


def show(found: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print the contenders and the ratios as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = (
        "",
        "real\ntokens/s",
        "trained\ntokens/s",
        "\nsamples/s",
        "\npadded",
        "peak\nGB",
        "first\nloss",
        "ours/\ntheirs",
        "\nmemory",
    )
    table = Table(*columns, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for one in found["contenders"]:
        rates = (f"{one[name]:,.1f}" for name in ("tokens_per_second", "trained_tokens_per_second"))
        samples = f"{one['samples_per_second']:,.2f}"
        memory, loss = f"{one['peak_memory_bytes'] / 1e9:,.2f}", f"{one['first_loss']:.4f}"
        ratios = (f"{one['times_as_fast']:.2f}x", f"{one['share_of_memory']:.2f}x")
        table.add_row(one["contender"], *rates, samples, f"{one['padded_share']:.1%}", memory, loss, *ratios)
    console = console or Console(highlight=False)
    console.print(table)
    turns = [said[0] for said in found["rounds"].values()]
    versions = {name: turn[name] for turn in turns for name in ("trl",) if name in turn} | turns[0]["versions"]
    names = [name for name in ("tunesmith", "torch", "transformers", "peft", "trl") if name in versions]
    console.print(
        f"{len(found['rounds'][OURS])} rounds over the same {found['rows']} rows; ratios are medians over the rounds\n"
        f"{turns[0]['date']}, {turns[0]['device']['name']}, {', '.join(f'{name} {versions[name]}' for name in names)}",
        soft_wrap=True,
    )
