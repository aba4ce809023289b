"""`train.transformers`: fields of TrainingArguments that tunesmith does not own, checked before anything is loaded.

Every field is in one of three lists: ours under another name, passed on, or refused with the reason.
"""

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import near

OWNED = {
    "output_dir": "train.output_dir",
    "num_train_epochs": "train.num_train_epochs",
    "max_steps": "train.max_steps",
    "per_device_train_batch_size": "train.per_device_train_batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "per_device_eval_batch_size": "eval.per_device_eval_batch_size",
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "adam_epsilon": "optimizer.epsilon",
    "optim": "optimizer.type",
    "optim_args": "the options of optimizer",
    "optim_target_modules": "the options of optimizer",
    "lr_scheduler_type": "train.lr_scheduler_type",
    "warmup_steps": "train.warmup_steps",
    "max_grad_norm": "train.max_grad_norm",
    "activation_checkpointing": "train.activation_checkpointing",
    "activation_checkpointing_kwargs": "train.activation_checkpointing or train.activation_offload",
    "gradient_checkpointing": "train.activation_checkpointing",
    "gradient_checkpointing_kwargs": "train.activation_checkpointing or train.activation_offload",
    "bf16": "train.bf16",
    "fp16": "train.fp16",
    "label_smoothing_factor": "objective.label_smoothing",
    "neftune_noise_alpha": "train.neftune_noise_alpha",
    "use_cpu": "train.device",
    "seed": "train.seed",
    "data_seed": "data.seed",
    "logging_strategy": "train.logging_steps",
    "logging_steps": "train.logging_steps",
    "save_strategy": "train.save_steps",
    "save_steps": "train.save_steps",
    "save_total_limit": "train.save_total_limit",
    "report_to": "train.report_to",
    "eval_strategy": "eval.eval_steps",
    "eval_steps": "eval.eval_steps",
    "load_best_model_at_end": "eval.load_best_model_at_end",
    "metric_for_best_model": "eval.load_best_model_at_end",
    "greater_is_better": "eval.load_best_model_at_end",
    "train_sampling_strategy": "data.shuffle",
    "fsdp": "parallel.strategy",
    "fsdp_config": "the options of parallel",
    "resume_from_checkpoint": "`tunesmith train RUN_FOLDER`",
}

ALLOWED = {  # what has an effect, and leaves rows, loss, steps and checkpoints as the recipe says
    "dataloader_multiprocessing_context",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "hub_private_repo",  # whether trackio's page is private
    "log_level",
    "logging_first_step",
    "lr_scheduler_kwargs",
    "project",
    "run_name",
    "tf32",
    "torch_compile",  # a resumed run compiles anew: it equals the other up to rounding
    "torch_compile_backend",
    "torch_compile_mode",
    "torch_empty_cache_steps",
    "trackio_bucket_id",
    "trackio_space_id",
    "trackio_static_space_id",
}

WORKERS = ("dataloader_multiprocessing_context", "dataloader_persistent_workers", "dataloader_prefetch_factor")

_WHY_REFUSED = {
    "rows are packed, and their order decided, before the trainer sees them": (
        "remove_unused_columns", "dataloader_drop_last", "dataloader_in_order", "length_column_name",
    ),
    "rows have a fixed number of tokens: set train.row_tokens": ("auto_find_batch_size",),
    "tunesmith shows its own progress": ("disable_tqdm",),
    "tunesmith counts tokens and memory itself (metrics.jsonl)": (
        "include_num_input_tokens_seen", "skip_memory_metrics",
    ),
    "a loss that is not finite stops the run": ("logging_nan_inf_filter", "debug"),
    "the loss is divided by the units of all ranks": ("average_tokens_across_devices",),
    "tunesmith joins the processes": (
        "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph",
        "ddp_timeout", "log_level_replica", "log_on_each_node", "local_rank",
    ),
    "log-probabilities come from tunesmith's own kernel": ("use_liger_kernel", "liger_kernel_config"),
    "training has no use for a cache": ("use_cache",),
    "tunesmith evaluates before the first step, and then as eval.eval_steps says": ("eval_on_start", "eval_delay"),
    "evaluation is tunesmith's own, in the precision of training": (
        "bf16_full_eval", "fp16_full_eval", "prediction_loss_only", "eval_do_concat_batches",
        "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics",
        "label_names",
    ),
    "checkpoints are tunesmith's own and hold all that a run goes on with": (
        "save_only_model", "save_on_each_node", "enable_jit_checkpoint", "restore_callback_states_from_checkpoint",
    ),
    "a resumed run sees the rows that are left": ("ignore_data_skip",),
    "it would seed after the model is made; train.seed decides the run": ("full_determinism",),
    "nothing is uploaded in training": (
        "push_to_hub", "hub_token", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    ),
    "say parallel.strategy=deepspeed, and DeepSpeed's own options in parallel.deepspeed_config": ("deepspeed",),
    "tunesmith makes it of the section parallel": ("parallelism_config", "accelerator_config"),
    "it has no effect on a run": ("do_train", "do_eval", "do_predict"),
}  # fmt: skip
REFUSED = {name: why for why, names in _WHY_REFUSED.items() for name in names}


def problem(fields: Mapping[str, Any]) -> str | None:
    """What is wrong with the fields of `train.transformers`, in one line; None when nothing is."""
    for name in fields:
        if name in OWNED:
            return f"{name} is tunesmith's own: set {OWNED[name]}"
        if name in REFUSED:
            return f"{name} cannot be set: {REFUSED[name]}"
    unknown = [name for name in fields if name not in ALLOWED]
    if not unknown:
        return _alone(fields)
    known = known_fields()
    for name in unknown:
        if name in known:
            return f"{name} is newer than tunesmith, which does not know what it would change: open an issue"
    return f"TrainingArguments has no field {unknown[0]!r}. {near(unknown[0], ALLOWED)}"


def _alone(fields: Mapping[str, Any]) -> str | None:
    """A field of worker processes without any: torch would refuse it when the first rows are loaded."""
    if not fields.get("dataloader_num_workers"):
        for name in WORKERS:
            if fields.get(name):
                return f"{name} needs dataloader_num_workers of 1 or more"
    return None


def known_fields() -> set[str]:
    """The fields of TrainingArguments, read from its source: importing transformers would take seconds."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None, "a dependency"
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    kind = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    return {
        node.target.id
        for node in kind.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_")
    }
