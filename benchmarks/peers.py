"""The usual trainers on the same rows: tokens a second, memory, the first step's loss and gradient norm.

    python benchmarks/peers.py {hf,trl,trl-pack,trl-dpo} --model DIR --data FILE --steps N

hf        transformers' Trainer with DataCollatorForSeq2Seq: pads to the longest row of the batch
trl       TRL's SFTTrainer on rows of prompt and completion, padded
trl-pack  the same with packing: one pack of --pack-length tokens a batch (not --batch-size)
trl-dpo   TRL's DPOTrainer, padded; the reference is the model without its adapter

Rows: alpaca (instruction, input, output) or messages, whose last turn is learned; for trl-dpo sharegpt preferences
(conversations, chosen, rejected) or a prompt and answers as messages. JSON or JSON lines; the first --rows of them in
file order, which only the packer changes. `--steps 0` makes one pass over them, so that every mode sees the same rows.
One JSON line on stdout. Rates are without the first --warmup steps. trl-dpo counts the tokens of both answers, and not
again for the reference; its samples are pairs.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
from datasets import Dataset

ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
MODES = ("hf", "trl", "trl-pack", "trl-dpo")
Row = dict[str, Any]


def main() -> None:
    """Train, and print what it took."""
    options = read_options()
    transformers.set_seed(options.seed)
    clock = Clock(options.device)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trainer = build(options, folder, clock)
        seen = counted(trainer)
        trainer.train()
    if len(seen) <= options.warmup:
        sys.exit(
            f"peers: these rows are {len(seen)} batches, and the first {options.warmup} are not counted: more rows are "
            "needed (in tunesmith bench: more --steps)"
        )
    print(json.dumps(result(options, seen, clock)))


def read_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line, or some others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--data", required=True, help="file of rows")
    parser.add_argument("--rows", type=int, default=400, help="rows of it that are used")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps; 0: one pass over the rows")
    parser.add_argument("--warmup", type=int, default=1, help="first steps that are not counted, at least 1")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=1024, help="tokens that a longer row is cut to")
    parser.add_argument("--pack-length", type=int, default=2048, help="tokens of a pack")
    parser.add_argument("--adapter", choices=["lora", "full"], default="lora")
    parser.add_argument("--lora-r", type=int, default=8)
    parser.add_argument("--lora-alpha", type=float, default=16)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.warmup < 1:
        parser.error("--warmup must be at least 1: the first step also builds what later ones reuse")
    return options


class Clock(transformers.TrainerCallback):
    """When every step ended, and what it logged."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ends: list[float] = []
        self.lines: list[dict[str, float]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the time, once the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Keep a step's line."""
        if "loss" in logs:
            self.lines.append(logs)


def build(options: argparse.Namespace, folder: str, clock: Clock, tokens: list[Row] | None = None) -> Any:
    """The trainer of a mode; `tokens`, of hf alone, are rows of input_ids and labels in place of the file's."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    rows = [] if tokens else read_rows(options)
    common: dict[str, Any] = {
        "output_dir": folder,
        "seed": options.seed,
        "max_steps": options.steps or -1,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "constant",
        "bf16": options.dtype == "bfloat16",
        "use_cpu": options.device == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    lora = None
    if options.adapter == "lora":
        lora = peft.LoraConfig(
            r=options.lora_r, lora_alpha=options.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    if options.mode == "hf":
        return transformers.Trainer(
            peft.get_peft_model(model, lora) if lora else model,
            args=transformers.TrainingArguments(**common),
            train_dataset=Dataset.from_list(tokens or tokenized(rows, tokenizer, options.max_length)),
            data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
            callbacks=[clock],
        )
    import trl

    common["gradient_checkpointing"] = False  # TRL's own default is true
    if options.mode == "trl-dpo":
        make, args = trl.DPOTrainer, trl.DPOConfig(**common, max_length=options.max_length)
    else:
        pack = options.mode == "trl-pack"
        common["per_device_train_batch_size"] = 1 if pack else options.batch_size
        length = options.pack_length if pack else options.max_length
        make, args = trl.SFTTrainer, trl.SFTConfig(**common, packing=pack, max_length=length)
    dataset = Dataset.from_list(rows)
    return make(
        model, args=args, peft_config=lora, train_dataset=dataset, processing_class=tokenizer, callbacks=[clock]
    )


def read_rows(options: argparse.Namespace) -> list[Row]:
    """The rows as TRL has them: a prompt and a completion, or a prompt and two answers."""
    text = Path(options.data).read_text(encoding="utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    made = preference if options.mode == "trl-dpo" else prompt_and_completion
    return [made(row) for row in rows[: options.rows]]


def prompt_and_completion(row: Row) -> Row:
    """A row of messages or alpaca's as a prompt and a completion."""
    if "messages" in row:
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
        return {"prompt": turns[:-1], "completion": turns[-1:]}
    user = row["instruction"] + ("\n" + row["input"] if row.get("input") else "")
    answer = {"role": "assistant", "content": row["output"]}
    return {"prompt": [{"role": "user", "content": user}], "completion": [answer]}


def preference(row: Row) -> Row:
    """A row of messages or sharegpt's as a prompt and two answers."""
    if "prompt" in row:
        names = ("prompt", "chosen", "rejected")
        return {name: [{"role": turn["role"], "content": turn["content"]} for turn in row[name]] for name in names}
    parts = {"prompt": row["conversations"], "chosen": [row["chosen"]], "rejected": [row["rejected"]]}
    return {
        name: [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
        for name, turns in parts.items()
    }


def tokenized(rows: list[Row], tokenizer: Any, max_length: int) -> list[Row]:
    """Rows as ids and labels, the prompt masked and the end cut off as TRL does it, those with no label left out."""
    found = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
        assert ids[: len(prompt)] == prompt, "the template writes a prompt as the beginning of the whole"
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        if len(prompt) < max_length:
            found.append({"input_ids": ids[:max_length], "labels": labels[:max_length]})
    return found


Seen = list[tuple[int, int, int, int]]


def counted(trainer: Any) -> Seen:
    """Make a trainer note each batch; returns the list it fills: real tokens, places, learned tokens, sequences."""
    seen: Seen = []
    inner = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")  # a pack has no mask and no padding
        learned = inputs["completion_mask"] if "completion_mask" in inputs else inputs["labels"] != -100
        sequences = len(ids) if mask is not None else int((inputs["position_ids"] == 0).sum())
        seen.append((ids.numel() if mask is None else int(mask.sum()), ids.numel(), int(learned.sum()), sequences))
        return inner(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss
    return seen


def result(options: argparse.Namespace, seen: Seen, clock: Clock) -> dict[str, Any]:
    """What is printed."""
    first = options.warmup
    seconds = clock.ends[-1] - clock.ends[first - 1]
    totals = [sum(batch[place] for batch in seen[first:]) for place in range(3)]
    names = ("real", "padded", "supervised")
    found: dict[str, Any] = {"mode": options.mode}
    found |= {f"{name}_tokens_per_s": total / seconds for name, total in zip(names, totals, strict=True)}
    found |= {f"{name}_tokens": total for name, total in zip(names, totals, strict=True)}
    found |= {"seconds": seconds, "steps": len(seen) - first, "warmup": first}
    found["run_tokens"] = sum(batch[0] for batch in seen)
    found["samples"] = sum(batch[3] for batch in seen[first:]) // (2 if options.mode == "trl-dpo" else 1)
    found["samples_per_s"] = found["samples"] / seconds
    found |= {"first_loss": clock.lines[0]["loss"], "last_loss": clock.lines[-1]["loss"]}
    found["first_grad_norm"] = clock.lines[0]["grad_norm"]
    unit = 1 if sys.platform == "darwin" else 1024
    found["peak_rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    found["peak_cuda_gb"] = torch.cuda.max_memory_allocated() / 1e9 if options.device == "cuda" else None
    found |= {name: getattr(options, name) for name in ("device", "dtype", "adapter", "batch_size")}
    found |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    packages = ("transformers", "peft", *(["trl"] if options.mode.startswith("trl") else []))
    return found | {name: version(name) for name in packages}


if __name__ == "__main__":
    main()
