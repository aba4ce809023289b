"""What each adapter, optimizer and quantised base costs and brings: one table each, on the rows of one data set.

    python benchmarks/choices.py --model DIR --data FILE --only adapters --found adapters.json
    python benchmarks/choices.py --only optimizers --steps 300 --seeds 0 1 2

Each candidate is trained in a process of its own, for the same steps on the same rows in the same order, with the
learning rate that a recipe takes where it says none. The time of a step is a ratio of processor time: every few steps
the first candidate of the list makes the step on the same rows too, right after the candidate, and the two sums are
compared, so that other work on the machine meets both. Memory is what torch gave out and took back in the last step,
weights included: bytes are counted, and the machine and what else it does change nothing. --found keeps what was
measured, so that a run that was stopped goes on.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

import measure
from tunesmith.engine.memory import LiveTensors

if TYPE_CHECKING:
    from tunesmith.adapted import Adapted
    from tunesmith.defaults import Resolved
    from tunesmith.engine.stopwatch import WatchedTrainer
    from tunesmith.recipe import Recipe
    from tunesmith.types import Batch

RELEASED = {"release_gradients": True, "max_grad_norm": 0.0}
IN_PLACE = {"type": "freeze", "num_layers": 2}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, use_rslora, r 64": {"type": "lora", "use_rslora": True, "r": 64},
    "lora, use_dora": {"type": "lora", "use_dora": True},
    "lora, pissa": {"type": "lora", "init_lora_weights": "pissa_niter_4"},
    "lora, LoRA+": {"type": "lora", "loraplus_lr_ratio": 16},
    **{
        name: {}
        for name in (
            *("adalora", "oft", "ia3", "vera", "loha", "lokr", "hira", "miss", "fourierft", "layernorm"),
            *("prompt", "p_tuning", "prefix", "bitfit", "freeze", "llama_pro", "full"),
        )
    },
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw8bit": {},
    "adam_mini": {},
    "lion": {},
    "adafactor": {},
    "muon": {},
    "galore": {},
    "apollo": {},
    "apollo_mini": {},
    "badam": {"type": "badam", "switch_every": 10},
    "schedule_free": {},
    "ademamix": {},
    "sgd": {},
    "lomo": {"train": RELEASED},
    "adalomo": {"train": RELEASED},
}
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "bnb_4bit, nf4": {"type": "bnb_4bit"},
    "bnb_4bit, fp4": {"type": "bnb_4bit", "quant_type": "fp4"},
    "bnb_8bit": {"type": "bnb_8bit"},
    "hqq": {"type": "hqq"},
}
CANDIDATES = {"adapters": ADAPTERS, "optimizers": OPTIMIZERS, "quantizations": QUANTIZATIONS}
FIRST = {kind: next(iter(some)) for kind, some in CANDIDATES.items()}
COMMON = ("learning rate", "loss before", "loss after", "step")
COLUMNS = {
    "adapters": ("adapter", "trained", *COMMON, "memory, MB"),
    "optimizers": ("optimizer", *COMMON, "state, bytes a weight", "memory, MB"),
    "quantizations": ("base", *COMMON, "layers, of 16 bits", "memory, MB"),
}


def main() -> None:
    """Measure what is not found, and print a table for each kind."""
    parser = measure.parser(__doc__)
    parser.add_argument("--only", choices=CANDIDATES, help="one kind; without it, all three")
    parser.add_argument("--names", nargs="*", help="some candidates, beside the first of each kind")
    parser.add_argument("--found", type=Path, help="a file that what was measured is kept in and taken from")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of each")
    parser.add_argument("--row-tokens", type=int, default=256, help="tokens of a step, and of the longest sample")
    parser.add_argument("--held-out", type=int, default=20, help="samples that are held out")
    parser.add_argument("--dtype", default="auto", help="of the weights, as model.dtype")
    parser.add_argument("--every", type=int, default=5, help="steps from one that is timed to the next")
    parser.add_argument("--seeds", type=int, nargs="*", default=[42], help="runs of each candidate")
    parser.add_argument("--trains", default=IN_PLACE, type=json.loads, help="adapter of the optimizers, as JSON")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with contextlib.redirect_stdout(sys.stderr):
            found = measured(options, *options.one)
        print(json.dumps(found))
        return
    for kind in [options.only] if options.only else CANDIDATES:
        rows = [row(name, found) for name, found in all_of(kind, options)]
        measure.report(title(kind, options), COLUMNS[kind], rows, options.json)


def title(kind: str, options: argparse.Namespace) -> str:
    """What was done, in a line."""
    trains = f" of {json.dumps(options.trains)}" if kind == "optimizers" else ""
    return (
        f"The {kind}{trains} on {options.model}: {options.steps} steps of {options.row_tokens} tokens, "
        f"{options.held_out} samples held out, dtype {options.dtype}, {len(options.seeds)} run(s) each"
    )


def row(name: str, found: Sequence[dict[str, Any]]) -> list[Any]:
    """A line of the table: the means over the runs of a candidate, and the losses' range where there are several."""
    mean = {key: statistics.mean(one[key] for one in found) for key in found[0]}
    after = [one["loss after"] for one in found]
    spread = f" ({min(after):.3f} to {max(after):.3f})" if len(after) > 1 else ""
    shown = {"loss before": f"{mean['loss before']:.3f}", "loss after": f"{mean['loss after']:.3f}{spread}"}
    shown |= {"step": f"{mean['step']:.2f}", "learning rate": f"{mean['learning rate']:.1e}"}
    return [name, *(int(value) if key == "trained" else value for key, value in (mean | shown).items())]


def all_of(kind: str, options: argparse.Namespace) -> list[tuple[str, list[dict[str, Any]]]]:
    """Each candidate of a kind, with what its runs gave; what is new is written into the file of what was found."""
    kept = json.loads(options.found.read_text()) if options.found and options.found.exists() else {}
    names = [name for name in CANDIDATES[kind] if not options.names or name in (FIRST[kind], *options.names)]
    found = []
    for name in names:
        runs = []
        for seed in options.seeds:
            key = json.dumps([title(kind, options), options.data, name, seed])
            if key not in kept:
                kept[key] = in_a_process(kind, name, seed)
                print(f"{kind}, {name}: {kept[key]}", file=sys.stderr)
                if options.found:
                    options.found.write_text(json.dumps(kept, indent=1))
            runs.append(kept[key])
        found.append((name, runs))
    return found


def in_a_process(kind: str, name: str, seed: int) -> dict[str, Any]:
    """What `measured` gives of a candidate in a new process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", json.dumps([kind, name, seed])]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(said)
    return found


def recipe_of(options: argparse.Namespace, kind: str, name: str, seed: int, folder: Path) -> "Resolved":
    """The recipe of a candidate, with what it leaves open filled in."""
    from tunesmith.defaults import resolve
    from tunesmith.engine.device import choose
    from tunesmith.recipe import Recipe

    said = dict(CANDIDATES[kind][name])
    train = {"max_steps": options.steps, "row_tokens": options.row_tokens, "seed": seed, "device": "cpu"}
    train |= {"bf16": False, "compile": False, "logging_steps": options.steps, **said.pop("train", {})}
    chosen: Any = {"type": name.partition(",")[0]} | said
    model = {"path": options.model, "dtype": options.dtype}
    if kind == "quantizations" and name != FIRST[kind]:
        model["quantization"] = chosen
    data = {"train": options.data or "builtin:identity", "eval": options.held_out, "max_tokens": options.row_tokens}
    return resolve(
        Recipe(
            model=model,
            data=data | {"cache_dir": str(folder / "cache")},
            adapter={"adapters": chosen, "optimizers": options.trains}.get(kind, "lora"),
            optimizer=chosen if kind == "optimizers" else "adamw",
            train=train,
        ),
        choose("cpu"),
    )


def measured(options: argparse.Namespace, kind: str, name: str, seed: int) -> dict[str, Any]:
    """What a candidate's run gives, by the names of the table's columns."""
    from tunesmith.adapted import adapt, parameters
    from tunesmith.engine.device import choose
    from tunesmith.engine.model import base_of
    from tunesmith.engine.quantised import held_bytes
    from tunesmith.engine.stopwatch import WatchedTrainer
    from tunesmith.parts import Given, Job, load, make_trainer

    with contextlib.ExitStack() as until_the_end:
        folder = Path(until_the_end.enter_context(tempfile.TemporaryDirectory()))
        first = recipe_of(options, kind, FIRST[kind], seed, folder).recipe
        beside = stepper(adapt(first, "cpu", None), first)
        resolved = recipe_of(options, kind, name, seed, folder)
        job = Job(resolved.recipe, resolved, choose("cpu"), Given(), None, lambda line: print(line, file=sys.stderr))
        loaded = load(job, None, None, until_the_end)
        (folder / "run").mkdir()
        trainer = make_trainer(job, folder / "run", loaded, (), WatchedTrainer)
        assert isinstance(trainer, WatchedTrainer)
        turns = Turns(trainer, beside, options.every)
        trainer.add_callback(turns)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    found = {"learning rate": resolved.recipe.optimizer.learning_rate, "loss before": before, "loss after": after}
    found["step"] = turns.own_seconds / turns.seconds
    if kind == "adapters":
        found = {"trained": parameters(loaded.model)["trained"], **found}
    elif kind == "optimizers":
        found["state, bytes a weight"] = size(states(trainer.optimizer)) / parameters(loaded.model)["trained"]
    else:
        layers, plain = held_bytes(base_of(loaded.model))
        found["layers, of 16 bits"] = layers / plain if plain else base_of(loaded.model).dtype.itemsize / 2
    return found | {"memory, MB": turns.peak_bytes / 1e6}


class Turns(TrainerCallback):
    """Has every few steps of a run made by another model too, and counts the bytes of the last one."""

    def __init__(self, trainer: "WatchedTrainer", beside: Callable[["Batch"], object], every: int) -> None:
        self.trainer, self.beside, self.every = trainer, beside, every
        self.own_seconds = self.seconds = 0.0  # processor time of the run's steps, and of the other model's
        self.peak_bytes = 0
        self._held: LiveTensors | None = None
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """Begin to count bytes in the last step, and time in the others."""
        if state.global_step == args.max_steps - 1:
            self.peak_bytes = size([*weights(self.trainer.model), *states(self.trainer.optimizer)])
            self._held = LiveTensors()
            self._held.__enter__()
        self._began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """End the count; or make the step that was just made with the other model."""
        if self._held is not None:
            self._held.__exit__(None, None, None)
            self.peak_bytes += self._held.peak
        elif state.global_step % self.every == 0:
            middle = time.process_time()
            self.beside(self.trainer.stopwatch.batches[-1][1])
            self.own_seconds += middle - self._began
            self.seconds += time.process_time() - middle


def stepper(adapted: "Adapted", recipe: "Recipe") -> Callable[["Batch"], object]:
    """What makes a step of a model on a batch, as the trainer does."""
    model, optimizer = adapted.model, recipe.optimizer.build(adapted.model)
    trained = [one for one in model.parameters() if one.requires_grad]
    model.train()

    def step(batch: "Batch") -> None:
        scores = adapted.kernels.scorer(model, batch, likelihood=recipe.objective.is_likelihood())
        (recipe.objective.loss(scores, batch).total / recipe.objective.count(batch)).backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def weights(model: Any) -> Iterator[torch.Tensor]:
    """What a model holds: parameters, buffers, and the scales of 4 bit weights."""
    yield from model.parameters()
    yield from model.buffers()
    for one in model.parameters():
        if getattr(one, "quant_state", None) is not None:
            yield from (part for part in one.quant_state.as_dict(packed=True).values())


def states(optimizer: Any) -> Iterator[torch.Tensor]:
    """The tensors of an optimizer's state."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if torch.is_tensor(value))


def size(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes of some tensors, of which several may lie in one storage."""
    storages = (one.untyped_storage() for one in tensors)
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


if __name__ == "__main__":
    main()
