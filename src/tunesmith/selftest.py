"""`tunesmith doctor --selftest`: trains everything that is declared to go together for two steps on the built-in model.

That is every objective with every adapter; and on weights in few bits every adapter, and every objective with LoRA. A
case that is refused must be refused before anything is loaded, and what needs a package that is not installed must say
how to get it. Each is tried in a process of a pool, each process on one thread.
"""

import contextlib
import gc
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from tunesmith import together
from tunesmith.component import all_of, refusal
from tunesmith.errors import MissingExtra, TunesmithError
from tunesmith.recipe import Recipe
from tunesmith.seams import Adapter, Objective, Quantization

MODEL = "builtin:tiny"
STEPS, SAMPLES = 2, 4
WORDS = 4096  # of its tokenizer
SIDE = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
Status = Literal["pass", "refused", "missing", "failed"]


@dataclass(frozen=True, slots=True)
class Case:
    """An objective, an adapter, and what the base model's weights are held in, by name; None: as they are stored."""

    objective: str
    adapter: str
    quantization: str | None = None

    def __str__(self) -> str:
        held = f" on {self.quantization}" if self.quantization else ""
        return f"{self.objective} with {self.adapter}{held}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case, and in words why where it is no pass."""

    case: Case
    status: Status
    note: str = ""
    seconds: float = 0.0


def cases() -> list[Case]:
    """Every pair of a shipped objective and adapter, and those on weights in few bits."""
    plain = [Case(pair.first, pair.second) for pair in together.pairs(Objective, Adapter)]
    tuned = [Case("sft", pair.first, pair.second) for pair in together.pairs(Adapter, Quantization)]
    qlora = [Case(name, "lora", "bnb_4bit") for name in all_of(Objective) if name != "sft"]
    return plain + tuned + qlora


def reason(case: Case) -> str | None:
    """Why a case is declared not to go together; None where it is declared to."""
    held = [all_of(Quantization)[case.quantization]()] if case.quantization else []
    return refusal([all_of(Objective)[case.objective](), all_of(Adapter)[case.adapter](), *held])


def run(say: Callable[[str], None]) -> list[Outcome]:
    """Try every case, in as many processes as there are cores, and tell of each as it ends."""
    found: list[Outcome] = []
    tried = cases()
    with tempfile.TemporaryDirectory(prefix="tunesmith-selftest-") as folder:
        prepare(Path(folder))
        pool = ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), initializer=_one_thread)
        with pool:
            waiting = [pool.submit(attempt, case, Path(folder)) for case in tried]
            for number, future in enumerate(as_completed(waiting), start=1):
                outcome = future.result()
                found.append(outcome)
                say(f"{number} of {len(tried)}: {_line(outcome)}")
    return sorted(found, key=lambda one: tried.index(one.case))


def _one_thread() -> None:
    """Make a process of the pool ready: one thread, and libraries that no collection of garbage looks through again."""
    import torch

    from tunesmith.engine import trainer  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()


def _line(outcome: Outcome) -> str:
    note = f" ({outcome.note})" if outcome.note else ""
    return f"{outcome.case}: {outcome.status}{note}"


def prepare(folder: Path) -> None:
    """Write the rows of every objective, models that have what the built-in one lacks, and a teacher, into a folder."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        BartConfig,
        Qwen2Config,
    )

    from tunesmith.engine.model import resolve_path, without_progress_bar

    for name, kind in all_of(Objective).items():
        rows = [_row(name, kind, number) for number in range(SAMPLES)]
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    sides = ("encoder", "decoder")
    shape: dict[str, Any] = {f"{side}_{part}": size for side in sides for part, size in SIDE.items()}
    two_sided = BartConfig(vocab_size=WORDS, d_model=64, **SPECIAL, **shape)
    plain: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    plain |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    own = resolve_path(MODEL)
    shapes = {"biased": Qwen2Config(vocab_size=WORDS, **plain)}
    shapes["teacher"] = AutoConfig.from_pretrained(own, num_hidden_layers=1)
    with without_progress_bar():
        AutoModelForSeq2SeqLM.from_config(two_sided).save_pretrained(folder / "two-sided")
        for name, config in shapes.items():
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    AutoTokenizer.from_pretrained(own).save_pretrained(folder / "teacher")


def _row(name: str, kind: Any, number: int) -> dict[str, Any]:
    """A row that an objective learns from."""
    words = [f"{number} and {place} is {number + place}" for place in range(4)]
    if kind.of_words:
        return {"tokens": words, "tags": [place % 2 for place in range(len(words))]}
    if name == "classify":
        return {"text": ", ".join(words), "label": number % 2}
    asked = {"prompt": f"What is {number} and 1?"}
    if "chosen" in kind.branches:
        return asked | {"chosen": words[1], "rejected": words[2]}
    return asked | {"completion": words[1]} | ({"label": number % 2 > 0} if kind.labels else {})


def recipe(case: Case, folder: Path) -> Recipe:
    """The recipe of a case, whose rows `prepare` wrote into a folder. Raises RecipeError where it is refused."""
    kind = all_of(Objective)[case.objective]
    options: dict[str, Any] = {"objective": {"type": case.objective}, "adapter": case.adapter}
    if "num_labels" in kind.model_fields:
        options["objective"]["num_labels"] = 2
    if case.objective == "distill":
        options["teacher"] = {"model": str(folder / "teacher")}
    model: dict[str, Any] = {"path": MODEL, "dtype": "float32"}
    if case.objective == "seq2seq" or case.adapter == "bitfit":  # which the built-in model has no biases for
        shape = folder / ("two-sided" if case.objective == "seq2seq" else "biased")
        model |= {"path": str(shape), "tokenizer": MODEL}
    if case.quantization:
        model["quantization"] = case.quantization
    rows = {"train": str(folder / f"{case.objective}.json"), "cache_dir": str(folder / "cache"), "max_tokens": 128}
    out = tempfile.mkdtemp(prefix="run-", dir=folder)
    train = {"max_steps": STEPS, "warmup_steps": 0, "device": "cpu", "compile": False, "output_dir": out}
    return Recipe(model=model, data=rows, train=train, **options)


def attempt(case: Case, folder: Path) -> Outcome:
    """Train a case for two steps, or see it refused as it is declared to be."""
    from tunesmith.run import train

    started, declared = time.monotonic(), reason(case)
    try:
        chosen = recipe(case, folder)
        if declared is not None:
            return Outcome(case, "failed", f"it is declared not to go together ({declared}), and was not refused")
        with contextlib.redirect_stderr(io.StringIO()):
            done = train(chosen)
        problem = _problem(done.folder)
    except MissingExtra as error:
        return Outcome(case, "missing", str(error))
    except TunesmithError as error:
        if declared is not None and declared in str(error):
            return Outcome(case, "refused", declared)
        return Outcome(case, "failed", f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what the test is for
        return Outcome(case, "failed", f"{type(error).__name__}: {error}")
    return Outcome(case, "failed" if problem else "pass", problem or "", time.monotonic() - started)


def _problem(run: Path) -> str | None:
    """What is wrong with a run that ended, if anything."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [line for line in lines if "loss" in line]
    if [line["step"] for line in trained] != list(range(1, STEPS + 1)):
        return f"it has metrics of the steps {[line['step'] for line in trained]}"
    if not all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in trained):
        return "a loss is not finite, or no weight has a gradient"
    return None


def lines(found: list[Outcome]) -> Iterator[str]:
    """The table of objectives and adapters, and what is behind each mark, as a person reads it."""
    adapters = list(dict.fromkeys(one.case.adapter for one in found))
    by_case = {(_row_name(one.case), one.case.adapter): one.status for one in found}
    names = list(dict.fromkeys(_row_name(one.case) for one in found))
    first = max(map(len, names))
    yield f"{'':{first}}  {'  '.join(f'{adapter:7}' for adapter in adapters)}".rstrip()
    for name in names:
        cells = (f"{by_case.get((name, adapter), ''):{max(len(adapter), 7)}}" for adapter in adapters)
        yield f"{name:{first}}  {'  '.join(cells)}".rstrip()
    yield ""
    notes: dict[tuple[str, str], list[str]] = {}
    for one in found:
        if one.note:
            notes.setdefault((one.status, one.note), []).append(str(one.case))
    for (status, note), about in notes.items():
        yield f"{status}: {', '.join(about)}: {note}"
    counts = {status: sum(one.status == status for one in found) for status in ("pass", "refused", "missing", "failed")}
    yield ", ".join(f"{number} {status}" for status, number in counts.items())


def _row_name(case: Case) -> str:
    return f"{case.objective} on {case.quantization}" if case.quantization else case.objective
