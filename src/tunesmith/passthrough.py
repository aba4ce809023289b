"""`train.transformers`: fields of TrainingArguments that tunesmith does not own, checked before anything is loaded."""

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
    "lr_scheduler_type": "train.lr_scheduler_type",
    "warmup_steps": "train.warmup_steps",
    "max_grad_norm": "train.max_grad_norm",
    "activation_checkpointing": "train.activation_checkpointing",
    "gradient_checkpointing": "train.activation_checkpointing",
    "bf16": "train.bf16",
    "fp16": "train.fp16",
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
    "resume_from_checkpoint": "`tunesmith train RUN_FOLDER`",
}

REFUSED = {
    "remove_unused_columns": "rows are packed before the trainer sees them",
    "disable_tqdm": "tunesmith shows its own progress",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "label_smoothing_factor": "the objective owns the loss",
    "auto_find_batch_size": "rows have a fixed number of tokens: set train.row_tokens",
    "push_to_hub": "nothing is uploaded in training",
    "ignore_data_skip": "a resumed run sees the rows that are left",
    "full_determinism": "it would seed after the model is made; train.seed decides the run",
}


def problem(fields: Mapping[str, Any]) -> str | None:
    """What is wrong with the fields of `train.transformers`, in one line; None when nothing is."""
    for name in fields:
        if name in OWNED:
            return f"{name} is tunesmith's own: set {OWNED[name]}"
        if name in REFUSED:
            return f"{name} cannot be set: {REFUSED[name]}"
    known = _known_fields() if fields else set()
    for name in fields:
        if name not in known:
            return f"TrainingArguments has no field {name!r}. {near(name, known - set(OWNED) - set(REFUSED))}"
    return None


def _known_fields() -> set[str]:
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
