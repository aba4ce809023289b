"""DeepSpeed's ZeRO: processes that share an optimizer's state (1), gradients too (2), and weights too (3).

DeepSpeed is given a module that makes scores of a batch, the head's included, since it prepares itself for a backward
pass by the gradients of what that module gives. With weights in parts, a layer is gathered as a whole; what is in none
(embeddings, head) stays gathered but for an optimizer's step, so that it is found outside of the module too.
"""

import contextlib
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tunesmith import extras, recipe_zero
from tunesmith.engine import ranks, shared_out, state_files
from tunesmith.engine.compat import keep_gradients, numbers_in_files
from tunesmith.engine.model import base_of
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe
from tunesmith.types import Batch, Scores

EXTRA = "extra."


class Scoring(torch.nn.Module):
    """A model with what makes scores of it, as one module."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.scorer: Any = None  # made after the weights are where they are to be

    def forward(self, batch: Batch, options: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The scores by name."""
        scores: Scores = self.scorer(self.model, batch, **options)
        named = {one.name: getattr(scores, one.name) for one in fields(scores) if one.name != "extra"}
        found = {name: value for name, value in named.items() if value is not None}
        return found | {EXTRA + name: value for name, value in scores.extra.items()}


class EngineScorer:
    """A scorer that goes through DeepSpeed, whatever model it is called with."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def __call__(self, model: Any, batch: Batch, **options: Any) -> Scores:
        """The scores of a batch."""
        found: dict[str, Any] = self.engine(batch, options)
        extra = {name.removeprefix(EXTRA): found.pop(name) for name in list(found) if name.startswith(EXTRA)}
        return Scores(**found, extra=extra)


class Begun(NamedTuple):
    """DeepSpeed around a model, and the optimizer that the recipe made, before DeepSpeed took it."""

    engine: Any
    trained: tuple[torch.nn.Parameter, ...]  # in the optimizer's order
    groups: tuple[dict[str, Any], ...]  # with the numbers of these
    swap: Path | None = None  # where this process keeps the optimizer's state, if in files


def wanted(recipe: Recipe) -> bool:
    """Whether DeepSpeed trains a recipe in the processes of this run."""
    return recipe.parallel.strategy == "deepspeed" and ranks.number() > 1


def refuse(recipe: Recipe, device: str) -> None:
    """Raise MissingExtra without DeepSpeed, and RecipeError where it would take another device than the recipe says."""
    if not wanted(recipe):
        return
    extras.need(f"parallel.strategy={recipe.parallel.strategy}", "deepspeed")
    if device == "cpu" and torch.cuda.is_available():
        raise RecipeError(
            f"train.device={device}: DeepSpeed takes a GPU where there is one: hide it (CUDA_VISIBLE_DEVICES=), or say "
            "parallel.strategy=fsdp"
        )


def begin(
    model: Any, optimizer: torch.optim.Optimizer, recipe: Recipe, device: str, swap: Path | None = None
) -> tuple[Begun | None, list[str]]:
    """DeepSpeed around a loaded and adapted model, whose weights it moves where they are to be; and what is to be said.

    None where it is not wanted. `swap` is this process's folder of files, where the optimizer's state is kept in such.

    Raises:
        RecipeError: there is no room for these.
    """
    if not wanted(recipe):
        return None, []
    with contextlib.redirect_stdout(sys.stderr):  # it speaks on stdout, which is for what a program reads
        return _begun(model, optimizer, recipe, device, swap)


def _begun(
    model: Any, optimizer: torch.optim.Optimizer, recipe: Recipe, device: str, swap: Path | None
) -> tuple[Begun, list[str]]:
    import deepspeed

    # deepspeed 0.19 calls two functions of torch's by names that torch 2.13 warns of
    warnings.filterwarnings("ignore", ".*(all_gather_into|reduce_scatter)_tensor. is deprecated", FutureWarning)
    trained = tuple(one for group in optimizer.param_groups for one in group["params"])
    groups = tuple(optimizer.state_dict()["param_groups"])
    level = recipe_zero.stage(recipe.parallel)
    config = recipe_zero.options(recipe, ranks.number(), model.config.get_text_config().hidden_size, swap)
    scoring = Scoring(model)
    deepspeed.init_distributed(auto_mpi_discovery=False)  # it counts processes before it meets them
    if level == 3:
        layers = shared_out.layers_of(model)
        deepspeed.utils.set_z3_leaf_modules(model, list({type(one) for one in layers}))
        base_of(model).enable_input_require_grads()  # a layer without would be told of its end before its gradients
        # one weight after the other goes to the device, and leaves a part there
        deepspeed.zero.Init(module=scoring, config_dict_or_path=config, dtype=next(model.parameters()).dtype)
        for buffer in scoring.buffers():
            buffer.data = buffer.data.to(device)
        for one in model.parameters():
            state: Any = getattr(one, "quant_state", None)
            if state is not None:  # the scales of 4 bit, whole on every process
                state.to(device)
    if swap is not None:
        parts = [one.ds_tensor.numel() for one in trained]
        state_files.refuse_small(recipe, swap, sum(parts), max(parts))
    engine, *_ = deepspeed.initialize(model=scoring, optimizer=optimizer, config=config)
    if swap is not None:
        keep_gradients(engine.optimizer)
    if level == 3:
        within = {id(one) for layer in layers for one in layer.parameters()}
        _keep([one for one in model.parameters() if id(one) not in within], engine.optimizer)
    line = f"parallel: DeepSpeed's ZeRO-{level} on {ranks.number()} processes"
    place = recipe_zero.offload(recipe.parallel)
    if swap is not None:
        here = sum(ranks.everyones(numbers_in_files(engine.optimizer)))
        line += f", the state of {here:,} weights in files in {swap.parent}"
        line += "" if here else ": groups of less than 1 MB stay in memory"
    elif place:
        line += f", kept on {place}"
    return Begun(engine, trained, groups, swap), [line]


def _keep(parameters: list[Any], optimizer: Any) -> None:
    """Keep what DeepSpeed shared out gathered from one step to the next."""
    for one in parameters:
        one.is_external_param = True  # or it is dropped after the module that has it, in passes that are recorded
        if not one.ds_persist:
            one.ds_persist = True  # gathered again after a step
            optimizer.persistent_parameters.append(one)
    shared_out.gather(parameters)


def rest(engine: Any) -> None:
    """Drop what is gathered of weights in parts, or is about to be, but for what stays. All processes call it."""
    if engine.zero_optimization_partition_weights():
        engine.empty_partition_cache()
        shared_out.gather(engine.optimizer.persistent_parameters)
