"""Whole runs on a tiny model, through the command line, and what must be equal between them."""

import hashlib
import json
from pathlib import Path

import yaml

from fixtures_commands import succeed
from fixtures_models import save_model

UNEQUAL = ("seconds",)  # of a line of metrics: clocks differ


def make(folder):
    """A model, rows and a recipe in a folder; the recipe's path."""
    save_model(folder / "model")
    rows = [
        {
            "instruction": f"What is {i} and {j}?",
            "output": f"{i} and {j} is {i + j}, " + "sure " * (i % 4) + "!",
        }
        for i in range(6)
        for j in range(6)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    recipe = {
        "model": str(folder / "model"),
        "data": {
            "train": str(folder / "rows.json"),
            "eval": 6,
            "max_tokens": 128,
            "cache_dir": str(folder / "cache"),
        },
        "adapter": {"type": "lora", "r": 4, "lora_dropout": 0.1},
        "optimizer": {"learning_rate": 5e-3},
        "train": {"row_tokens": 128, "num_train_epochs": 2, "save_steps": 2, "save_total_limit": 3},
        "eval": {"prompts": ["What is 2 and 3?"], "max_new_tokens": 4},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def train(recipe, out, *words):
    """A run to its end."""
    succeed("train", recipe, *words, f"train.output_dir={out}")
    return out


def metrics(run, *left_out):
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in (*UNEQUAL, *left_out)} for line in lines]


def digests(folder):
    """The digest of every file of weights."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).glob("*.safetensors")}
    assert found
    return found


def weights(run):
    from safetensors.torch import load_file

    (path,) = (Path(run) / "final").glob("*.safetensors")
    return load_file(path)
