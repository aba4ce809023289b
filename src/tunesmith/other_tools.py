"""Words of other tools, and what they are called here: "did you mean" looks here first, and the guide lists them.

TrainingArguments' own names are in `passthrough.OWNED`: what they are called here follows from that list.
"""

OPTIONS = {  # the last part of an option's name in LLaMA-Factory, TRL, Axolotl, peft or bitsandbytes: what to write
    "load_in_4bit": "model.quantization=bnb_4bit",
    "load_in_8bit": "model.quantization=bnb_8bit",
    "quantization_bit": "model.quantization=bnb_4bit",
    "model_name_or_path": "model.path",
    "base_model": "model.path",
    "cutoff_len": "data.max_tokens",
    "max_length": "data.max_tokens",
    "max_seq_length": "data.max_tokens",
    "sequence_len": "data.max_tokens",
    "batch_size": "train.per_device_train_batch_size",
    "micro_batch_size": "train.per_device_train_batch_size",
    "num_epochs": "train.num_train_epochs",
    "epochs": "train.num_train_epochs",
    "warmup_ratio": "train.warmup_steps",
    "lr_scheduler": "train.lr_scheduler_type",
    "lr": "optimizer.learning_rate",
    "rank": "adapter.r",
    "lora_rank": "adapter.r",
    "lora_r": "adapter.r",
    "lora_target": "adapter.target_modules",
    "lora_target_modules": "adapter.target_modules",
    "val_set_size": "data.eval",
    "nproc": "launcher.nproc_per_node",
}
NAMES = {  # of components, by what they are: what to write
    "adapter": {
        "qlora": "adapter=lora model.quantization=bnb_4bit",
        "dora": "adapter=lora adapter.use_dora=true",
        "boft": "adapter=oft",
    },
    "optimizer": {
        "adamw_torch": "optimizer=adamw",
        "adamw_torch_fused": "optimizer=adamw",
        "adamw_8bit": "optimizer=adamw8bit",
        "adamw_bnb_8bit": "optimizer=adamw8bit",
        "paged_adamw_8bit": "optimizer=adamw8bit optimizer.paged=true",
    },
    "launcher": {"accelerate": "launcher=torchrun"},
    "export": {"vllm": "type=merged"},
}
VALUES = {  # of options with a choice: what to write
    "train.lr_scheduler_type": {"wsd": "train.lr_scheduler_type=warmup_stable_decay"},
    "parallel.strategy": {
        "zero1": "parallel.strategy=deepspeed parallel.zero_stage=1",
        "zero2": "parallel.strategy=deepspeed parallel.zero_stage=2",
        "zero3": "parallel.strategy=deepspeed parallel.zero_stage=3",
    },
    "model.rope_scaling": {
        name: f"model.rope_scaling={{rope_type: {name}, factor: 4}}" for name in ("linear", "dynamic", "yarn", "llama3")
    },
}
_WAITS = "it waits for a metric, so that training would depend on how often it is evaluated"
REASONS = {  # why a name is not here
    "boft": "without a CUDA extension that peft compiles on first use, it is oft with other numbers",
    "reduce_lr_on_plateau": _WAITS,
    "greedy": _WAITS,
}


def instead(name: str, known: dict[str, str]) -> str:
    """A hint for a name of another tool, of one of the tables; empty for any other."""
    ours = f"Did you mean {known[name]!r}?" if name in known else ""
    return f"It is not here: {REASONS[name]}. {ours}".rstrip() if name in REASONS and ours else ours
