"""Checkpoints: written whole or not at all, verified on load, and without pickle.

A checkpoint is a folder: the weights (the adapter's alone where only an adapter is trained), `optimizer.safetensors`,
`state.json` (optimizer, scheduler, scaler, random generators, counters), transformers' `trainer_state.json`, and
`manifest.json` with the size and SHA-256 of each file. It is written beside its place and renamed when it is on disk.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from tunesmith import atomic
from tunesmith.engine import flat_parts, initial, multi_adapter, quantised, ranks, rope, shared_out, shares
from tunesmith.engine.compat import peft_warnings
from tunesmith.engine.model import base_of, has_words, is_adapted, num_virtual_tokens, without_progress_bar
from tunesmith.errors import RunError

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
RANDOM = "random-{}.safetensors"  # of each rank


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, that appears under its name complete, on disk and with a manifest, or not at all."""
    with atomic.folder(final, replace=lambda damaged: True) as work:
        yield work
        files = sorted(path for path in work.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(work)): [path.stat().st_size, _digest(path)] for path in files}
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint: a missing or changed file by name, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{folder} has no readable {MANIFEST}"
    for name, (size, digest) in manifest.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or _digest(path) != digest:
            return f"{path} is {'damaged' if path.is_file() else 'missing'}"
    return None


def steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, oldest first."""
    names = [path.name for path in (run / FOLDER).glob("step-*") if path.name[5:].isdigit()]
    return sorted(int(name.removeprefix("step-")) for name in names)


def place(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / FOLDER / f"step-{step}"


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and what is wrong with any newer one.

    Raises:
        RunError: there are checkpoints, and every one is damaged.
    """
    problems: list[str] = []
    for step in reversed(steps(run)):
        problem = damage(place(run, step))
        if problem is None:
            return place(run, step), problems
        problems.append(problem)
    if problems:
        raise RunError(f"no checkpoint of {run} is whole: {problems[0]}. Remove the run folder and train again")
    return None, []


def prune(run: Path, limit: int, best: int | None) -> None:
    """Remove the oldest checkpoints over the limit, never the best one."""
    found = [step for step in steps(run) if step != best]
    for step in found[: max(0, len(found) - limit)]:
        shutil.rmtree(place(run, step))


def forget_after(run: Path, step: int) -> None:
    """Remove the checkpoints after a step, and what killed saves left."""
    for later in [place(run, found) for found in steps(run) if found > step]:
        shutil.rmtree(later)
    for partial in (run / FOLDER).glob(".*.partial"):
        shutil.rmtree(partial)


def save_ends(model: Any, folder: Path, ends: set[int]) -> None:
    """Write generation_config.json with the tokens that end an answer beside the model's own.

    The model's config is not changed: transformers refuses to save many a published one once it was.
    """
    base = base_of(model)
    config = json.loads(base.generation_config.to_json_string())
    own = config.get("eos_token_id")
    config["eos_token_id"] = sorted(ends.union(own if isinstance(own, list) else [own]) - {None})
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_state(
    folder: Path,
    found: Mapping[str, Any],
    scheduler: Any,
    scaler: Any | None,
    counters: Mapping[str, Any],
    random_states: Sequence[Mapping[str, Any]],
) -> None:
    """Write what a step depends on but weights, of the optimizer (`found`) and every rank (`random_states`) too."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for index, state in found["state"].items():
        for name, value in state.items():
            if isinstance(value, DTensor):
                continue  # in files of its own: `shares.save`
            (tensors if isinstance(value, torch.Tensor) else values)[f"{index}.{name}"] = value
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / OPTIMIZER)
    for rank, one in enumerate(random_states):
        words = {name: torch.from_numpy(words) for name, words in one["words"].items()}
        save_file(words, folder / RANDOM.format(rank))
    state = {
        "optimizer": {"values": values, "param_groups": found["param_groups"]},
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "random": [{"python": one["python"], "numpy": one["numpy"]} for one in random_states],
        "counters": counters,
    }
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    """Restore the optimizer and the scheduler."""
    state: dict[int, dict[str, Any]] = {}
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for index, name, value in states(folder, parameters):
        state.setdefault(index, {})[name] = shares.part_of(value, parameters[index])
    groups = read_state(folder)["optimizer"]["param_groups"]
    for group in groups:
        group.update({name: tuple(value) for name, value in group.items() if name == "betas"})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    scheduler.load_state_dict(read_state(folder)["scheduler"])


def states(folder: Path, parameters: Sequence[torch.Tensor]) -> Iterator[tuple[int, str, Any]]:
    """The state that a checkpoint has of an optimizer: the number of a parameter, what it is, and its value."""
    saved = read_state(folder)["optimizer"]["values"]
    found = [*load_file(folder / OPTIMIZER).items(), *saved.items(), *shares.load_state(parameters, folder)]
    named = [(int(index), name, value) for (index, _, name), value in ((key.partition("."), one) for key, one in found)]
    yield from sorted(named, key=lambda one: one[:2])  # what is kept of parameters together is read in together
    yield from (found for found in flat_parts.whole(parameters, folder) if found[1] != flat_parts.WEIGHT)


def load_course(folder: Path, groups: Sequence[dict[str, Any]], scheduler: Any) -> None:
    """Restore the scheduler, and what its steps have made of an optimizer's groups, whose parameters stay."""
    saved = read_state(folder)
    for group, before in zip(groups, saved["optimizer"]["param_groups"], strict=True):
        group.update({name: value for name, value in before.items() if name not in ("params", "betas")})
    scheduler.load_state_dict(saved["scheduler"])


def load_random(folder: Path, rank: int) -> None:
    """Restore every random generator of a rank; one that was not there before draws numbers of its own."""
    states = read_state(folder)["random"]
    if rank >= len(states):
        torch.manual_seed(torch.initial_seed() + rank)
        return
    saved, tensors = states[rank], load_file(folder / RANDOM.format(rank))
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind_of_generator, *place = saved["numpy"]
    np.random.set_state((kind_of_generator, tensors["numpy"].numpy(), *place))
    torch.set_rng_state(tensors["cpu"])
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind)
        if kind in tensors and module.is_available():
            module.set_rng_state(tensors[kind])


def read_state(folder: Path) -> dict[str, Any]:
    """The part of a checkpoint that is JSON."""
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def _numpy_random() -> tuple[Any, ...]:
    """Kind of generator, its words (an array), and three numbers."""
    state = np.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    return state


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process."""
    words = {"cpu": torch.get_rng_state().numpy(), "numpy": _numpy_random()[1].copy()}
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind)
        if module.is_available():
            words[kind] = module.get_rng_state().numpy()
    numbers = [part for part in _numpy_random() if not isinstance(part, np.ndarray)]
    return {"words": words, "python": random.getstate(), "numpy": numbers}


def save_weights(model: Any, folder: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the trained weights: the active adapter as a plain peft one, or a plain transformers model.

    `state` is the whole model's where its weights lie in parts (`shared_out.whole_state`).
    """
    base = base_of(model)
    base.config.use_cache = True  # the trainer turned it off for training
    try:
        if is_adapted(model):
            multi_adapter.save(model, multi_adapter.active(model), folder)
            quantised.save_config(base, folder)
            if num_virtual_tokens(model):
                from tunesmith.engine import virtual_tokens

                virtual_tokens.save(model, folder)
            if not has_words(model) or rope.is_scaled(base.config):
                base.config.architectures = [shared_out.plain_class(base).__name__]
                base.config.save_pretrained(folder)  # the values of its head with their names, and its positions
        else:
            with without_progress_bar():
                model.save_pretrained(folder, state_dict=state)
    finally:
        base.config.use_cache = False


def load_weights(model: Any, folder: Path) -> None:
    """Put a checkpoint's weights into a model of the same shape, which every rank calls where weights lie in parts."""
    if flat_parts.has_weights(folder):
        for parameter, value in flat_parts.weights(model, folder):
            _put(parameter, value)
        return
    if shares.there(folder):
        shares.load(model, folder)
        return
    if num_virtual_tokens(model):
        from tunesmith.engine import virtual_tokens

        virtual_tokens.load(model, folder)
        return
    if is_adapted(model):
        from peft import set_peft_model_state_dict

        name, state = multi_adapter.active(model), load_file(folder / "adapter_model.safetensors")
        if initial.takes(model.peft_config[name]):
            state = initial.take_up(model, name, state)
        with peft_warnings(), shared_out.written(model):
            result = set_peft_model_state_dict(model, state, adapter_name=name)
        assert not result.unexpected_keys, result.unexpected_keys
        return
    exact = torch.float32 if any(one.dtype == torch.float32 for one in model.parameters()) else model.dtype  # a head
    with without_progress_bar():
        stored = shared_out.plain_class(model).from_pretrained(folder, dtype=exact)
    if any(map(shared_out.is_parted, model.parameters())):
        own = dict(model.named_parameters())
        for key, value in stored.named_parameters():
            _put(own[key], value)
        return
    model.load_state_dict(shares.parts_of(stored.state_dict(), model))


@torch.no_grad()
def _put(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    if shared_out.is_parted(parameter):
        flat_parts.put(parameter, value, ranks.own())
    else:
        parameter.copy_(shares.part_of(value.to(parameter.dtype), parameter))
