"""The only place where an option of ours becomes an option of transformers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from tunesmith.engine.compat import one_device
from tunesmith.engine.device import COUNTED
from tunesmith.errors import RecipeError, near
from tunesmith.recipe import Recipe
from tunesmith.recipe_train import OF_SCHEDULES, Train


def arguments(recipe: Recipe, folder: Path, max_steps: int, evaluates: bool) -> transformers.TrainingArguments:
    """TrainingArguments of a resolved recipe. The rows of the whole run are one epoch, taken in order.

    Raises:
        RecipeError: transformers refuses a value (of `train.transformers`, mostly).
    """
    train = recipe.train
    try:
        args = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=max_steps,
            per_device_train_batch_size=train.per_device_train_batch_size,
            per_device_eval_batch_size=recipe.eval.per_device_eval_batch_size,
            gradient_accumulation_steps=train.gradient_accumulation_steps,
            learning_rate=recipe.optimizer.learning_rate or 0.0,
            lr_scheduler_type=train.lr_scheduler_type or "cosine",
            warmup_steps=train.warmup_steps,
            max_grad_norm=train.max_grad_norm,
            bf16=bool(train.bf16),
            fp16=train.fp16,
            use_cpu=train.device == "cpu",
            seed=train.seed,
            logging_strategy="steps",
            logging_steps=train.logging_steps,
            save_strategy="steps",
            save_steps=train.save_steps,
            eval_strategy="steps" if evaluates else "no",
            eval_steps=recipe.eval.eval_steps or max_steps,
            metric_for_best_model="eval_loss" if evaluates else None,
            greater_is_better=False,
            report_to=list(train.report_to) or "none",
            train_sampling_strategy="sequential",  # the rows come shuffled
            remove_unused_columns=False,
            accelerator_config={"non_blocking": train.device in COUNTED},  # from pinned memory, beside the step before
            disable_tqdm=True,
            logging_nan_inf_filter=False,
            **_others(train, max_steps),
        )
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"train: transformers says: {str(error).splitlines()[0]}") from error
    _try_scheduler(args)
    one_device(args)
    return args


def _others(train: Train, max_steps: int) -> dict[str, Any]:
    """The fields that come from `train.transformers`, and what goes with them: options of the schedule first."""
    said = train.transformers.get("lr_scheduler_kwargs") or {}
    options = {"lr_scheduler_kwargs": _schedule_options(train, max_steps) | said} if isinstance(said, dict) else {}
    return {"ddp_find_unused_parameters": False} | train.transformers | options  # a loss reaches all that is trained


def _schedule_options(train: Train, max_steps: int) -> dict[str, Any]:
    """`train.decay_steps` and `train.min_lr_ratio` as the schedule calls them."""
    if train.lr_scheduler_type == "warmup_stable_decay":
        said = 0.1 if train.decay_steps is None else train.decay_steps
        steps = said if said >= 1 else math.ceil(said * max_steps)
        return {"num_decay_steps": int(steps), "min_lr_ratio": train.min_lr_ratio or 0.0}
    if train.lr_scheduler_type in OF_SCHEDULES["min_lr_ratio"]:
        theirs = {"min_lr", "min_lr_rate"} & (train.transformers.get("lr_scheduler_kwargs") or {}).keys()
        return {} if theirs else {"min_lr_rate": 0.1 if train.min_lr_ratio is None else train.min_lr_ratio}
    return {}


def warm_up_note(args: transformers.TrainingArguments) -> str | None:
    """What is said of a run of which half the steps or more are warm-up, whose first has a learning rate of 0."""
    steps, schedule = args.get_warmup_steps(args.max_steps), args.lr_scheduler_type
    if 2 * steps < args.max_steps or not steps or schedule == "constant":
        return None
    told = "all steps are warm-up" if steps >= args.max_steps else f"{steps} of {args.max_steps} steps are warm-up"
    return f"warm-up: {told}, and the first has a learning rate of 0: train.warmup_steps=0 leaves it out"


def look_for_trackers(names: Sequence[str]) -> None:
    """Raise RecipeError for a tracker that transformers does not know or that is not installed."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    # flyte is a tracker that transformers does not look for: its own error comes later
    installed = {"all", "none", "flyte", *get_available_reporting_integrations()} if names else set()
    for name in names:
        if name not in installed and name not in INTEGRATION_TO_CALLBACK:
            raise RecipeError(f"train.report_to: there is no tracker {name!r}. {near(name, INTEGRATION_TO_CALLBACK)}")
        if name not in installed:
            raise RecipeError(f"train.report_to: {name} is not installed: install it, or leave it out")


def _try_scheduler(args: transformers.TrainingArguments) -> None:
    """Build the scheduler once, for nothing: what it lacks would come out after the run folder is made."""
    options = args.lr_scheduler_kwargs
    assert options is None or isinstance(options, dict), "transformers reads JSON text into a mapping"
    try:
        transformers.get_scheduler(
            args.lr_scheduler_type,
            torch.optim.SGD([torch.zeros(1)], lr=1.0),
            num_warmup_steps=args.get_warmup_steps(args.max_steps),
            num_training_steps=args.max_steps,
            scheduler_specific_kwargs=options,
        )
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"train.lr_scheduler_type: {str(error).splitlines()[0]}. What it needs stands in "
            "train.transformers.lr_scheduler_kwargs"
        ) from error
