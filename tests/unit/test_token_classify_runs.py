"""Classes of words from the command line to plain transformers."""

import json
import random

import pytest
import torch
import yaml

from fixtures_models import save_model
from fixtures_values import WORDS, save_encoder
from tunesmith.cli import main as cli

CLASSES = ("O", "B-PLACE", "I-PLACE")
PLACES = (("river", "sea"), ("moon",), ("cat", "runs", "sea"))
SAMPLES, HELD_OUT, EPOCHS = 60, 12, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, rows of words with their classes, and a recipe."""
    place = tmp_path_factory.mktemp("tagged")
    save_model(place / "model")
    save_encoder(place / "distilbert", "distilbert")
    chance = random.Random(0)
    rows = []
    for _ in range(SAMPLES):
        tokens, tags = chance.choices(WORDS[:4], k=chance.randint(1, 6)), []
        tags += ["O"] * len(tokens)
        for name in chance.sample(PLACES, chance.randint(0, 2)):
            tokens, tags = [*tokens, "to", *name], [*tags, "O", "B-PLACE", *["I-PLACE"] * (len(name) - 1)]
        rows.append({"tokens": tokens, "tags": tags})
    numbers = [row | {"tags": [CLASSES.index(tag) for tag in row["tags"]]} for row in rows]
    for name, some in (("names", rows), ("numbers", numbers)):
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)) + "\n")
    recipe = {
        "model": {"path": str(place / "model"), "dtype": "float32"},
        "objective": "token_classify",
        "adapter": {"type": "lora", "r": 4},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"row_tokens": 256, "num_train_epochs": EPOCHS},
        "data": {
            "train": [{"path": str(place / "names.jsonl"), "format": {"type": "tagged", "classes": list(CLASSES)}}],
            "eval": HELD_OUT,
            "max_tokens": 60,
            "cache_dir": str(place / "cache"),
            "template": "plain",
        },
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return place


def train(folder, out, *words):
    assert cli.main(["train", str(folder / "recipe.yaml"), f"train.output_dir={out}", *words]) == 0
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def plain(folder, run, base):
    """The model that plain transformers, or plain peft, loads, and its tokenizer."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

    final = run / "final"
    model = AutoModelForTokenClassification.from_pretrained(base or final, config=AutoConfig.from_pretrained(final))
    model = PeftModel.from_pretrained(model, final) if base else model
    return model.eval(), AutoTokenizer.from_pretrained(final)


def said(model, tokenizer, words):
    """The class of each word, read where its first token stands, by plain transformers."""
    text = " ".join(words)
    encoded = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        found = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[0].argmax(1)
    starts = [sum(len(word) + 1 for word in words[:place]) for place in range(len(words))]
    return [model.config.id2label[int(found[encoded.char_to_token(start)])] for start in starts]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft, asking by an old name
@pytest.mark.parametrize(("model", "adapter"), [("model", "lora"), ("model", "full"), ("distilbert", "lora")])
def test_classes_of_words_are_learned_and_plain_transformers_says_them(folder, tmp_path, model, adapter):
    words = (f"model.path={folder / model}", f"adapter={{type: {adapter}}}")
    lines = train(folder, tmp_path / "run", *words)
    last = lines[-1]
    counts = torch.tensor(last["eval_confusion"], dtype=torch.float64)
    rows = [json.loads(line) for line in (folder / "names.jsonl").read_text().splitlines()]
    trained = next(line["trained_tokens"] for line in reversed(lines) if "trained_tokens" in line)
    assert counts.shape == (3, 3) and counts.sum() + trained / EPOCHS == sum(len(row["tags"]) for row in rows)
    assert last["eval_accuracy"] == pytest.approx(float(counts.trace() / counts.sum())) and last["eval_accuracy"] > 0.9
    assert lines[0]["eval_accuracy"] < 0.9
    assert (tmp_path / "run" / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    loaded, tokenizer = plain(folder, tmp_path / "run", folder / model if adapter == "lora" else None)
    assert loaded.config.id2label == dict(enumerate(CLASSES))
    pairs = [pair for row in rows for pair in zip(said(loaded, tokenizer, row["tokens"]), row["tags"], strict=True)]
    assert sum(ours == theirs for ours, theirs in pairs) > 0.95 * len(pairs)
