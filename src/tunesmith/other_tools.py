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
    "lora_target_linear": "adapter.target_modules=all-linear",
    "additional_target": "adapter.modules_to_save",
    "adapter_name_or_path": "adapter.start_from",
    "finetuning_type": "adapter",
    "pissa_init": "adapter.init_lora_weights=pissa",
    "freeze_trainable_layers": "adapter.num_layers",
    "stage": "objective",
    "pref_beta": "objective.beta",
    "pref_loss": "objective.loss_type",
    "pref_ftx": "objective.sft_weight",
    "simpo_gamma": "objective.gamma",
    "kto_chosen_weight": "objective.desirable_weight",
    "kto_rejected_weight": "objective.undesirable_weight",
    "ref_model": "reference.model",
    "dataset": "data.train",
    "datasets": "data.train",
    "train_dataset": "data.train",
    "eval_dataset": "data.eval",
    "val_set_size": "data.eval",
    "dataset_dir": "data.registry",
    "dataset_text_field": "data.train.0.columns",
    "max_samples": "data.train.0.num_samples",
    "mix_strategy": "data.mix",
    "interleave_probs": "data.train.0.weight",
    "buffer_size": "data.buffer_samples",
    "preprocessing_num_workers": "data.num_processes",
    "dataset_num_proc": "data.num_processes",
    "mask_history": "data.loss.turns=last",
    "train_on_inputs": "data.loss.train_on_prompt",
    "add_tokens": "model.new_tokens",
    "add_special_tokens": "model.new_special_tokens",
    "shift_attn": "train.shifted_sparse_attention",
    "use_badam": "optimizer=badam",
    "use_galore": "optimizer=galore",
    "use_apollo": "optimizer=apollo",
    "nproc": "launcher.nproc_per_node",
}
NAMES = {  # of components, by what they are: what to write
    "objective": {"pt": "objective=pretrain", "rm": "objective=reward"},
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
VALUES = {  # of options with a choice, ours or a tool's: what to write
    "quantization_bit": {"8": "model.quantization=bnb_8bit"},
    "stage": {"pt": "objective=pretrain", "rm": "objective=reward"}
    | {stage: f"parallel.strategy=deepspeed parallel.zero_stage={stage}" for stage in "123"},
    "lora_target": {"all": "adapter.target_modules=all-linear"},
    "adapter.target_modules": {"all": "adapter.target_modules=all-linear"},
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
_PACKED = "samples are packed into rows in any case, and see nothing of each other"
_ATTENTION = "attention is chosen by the device, as one that keeps the samples of a row apart"
_ANSWERS = "answers alone are learned, unless data.loss says otherwise"
NEEDLESS = {  # the last part of an option's name elsewhere that nothing here stands for: why
    "packing": _PACKED,
    "neat_packing": _PACKED,
    "sample_packing": _PACKED,
    "flash_attn": _ATTENTION,
    "flash_attention": _ATTENTION,
    "attn_implementation": _ATTENTION,
    "assistant_only_loss": _ANSWERS,
    "completion_only_loss": _ANSWERS,
    "overwrite_output_dir": "a run is written to a new or empty folder, and over nothing: say another train.output_dir",
    "trust_remote_code": "models are those that transformers has a class for; code that comes with one is never run",
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


def option(name: str, value: object) -> str:
    """What to write for an option of another tool's name that has this value; empty for any other."""
    return VALUES.get(name, {}).get(str(value).lower()) or OPTIONS.get(name, "")
