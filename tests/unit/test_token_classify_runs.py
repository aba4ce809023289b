"""Classes of words from the command line to plain transformers."""

import json
import random
import re

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
@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(("model", "adapter"), [("model", "lora"), ("model", "full"), ("distilbert", "lora")])
def test_classes_of_words_are_learned_and_plain_transformers_says_them(folder, tmp_path, capsys, model, adapter):
    words = (f"model.path={folder / model}", f"adapter={{type: {adapter}}}")
    lines = train(folder, tmp_path / "run", *words)
    last = lines[-1]
    counts = torch.tensor(last["eval_confusion"], dtype=torch.float64)
    rows = [json.loads(line) for line in (folder / "names.jsonl").read_text().splitlines()]
    trained = next(line["trained_tokens"] for line in reversed(lines) if "trained_tokens" in line)
    assert counts.shape == (3, 3) and counts.sum() + trained / EPOCHS == sum(len(row["tags"]) for row in rows)
    assert last["eval_accuracy"] == pytest.approx(float(counts.trace() / counts.sum())) and last["eval_accuracy"] > 0.9
    assert lines[0]["eval_accuracy"] < 0.9 and lines[0]["eval_entity_f1"] < 0.5 < 0.8 < last["eval_entity_f1"]
    assert (tmp_path / "run" / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    loaded, tokenizer = plain(folder, tmp_path / "run", folder / model if adapter == "lora" else None)
    assert loaded.config.id2label == dict(enumerate(CLASSES))
    pairs = [pair for row in rows for pair in zip(said(loaded, tokenizer, row["tokens"]), row["tags"], strict=True)]
    assert sum(ours == theirs for ours, theirs in pairs) > 0.95 * len(pairs)
    capsys.readouterr()
    assert cli.main(["score", str(tmp_path / "run"), str(folder / "names.jsonl"), "--json"]) == 0
    scored = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["tokens"] for row in scored] == [row["tokens"] for row in rows]
    assert [tag for row in scored for tag in row["tags"]] == [ours for ours, _ in pairs]


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_an_export_says_what_the_run_does(folder, tmp_path, capsys, kind):
    train(folder, tmp_path / "run", "train.max_steps=3")
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), f"type={kind}"]) == 0
    assert "the same values as the run" in capsys.readouterr().out
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "hello the moon"}) + "\n")
    lines = []
    for one in ("run", "out"):
        assert cli.main(["score", str(tmp_path / one), str(tmp_path / "rows.jsonl")]) == 0
        lines.append(capsys.readouterr().out.splitlines()[-1])
    assert lines[0] == lines[1] and "hello/" in lines[0] and " moon/" in lines[0]


def test_names_and_numbers_a_stream_and_the_cut_of_a_step_train_the_same(folder, tmp_path):
    words = (
        "train.max_steps=3",
        "data.eval=0",
        "adapter=full",
        "data.shuffle=false",
        "model.path=" + no_dropout(folder),
    )
    whole = train(folder, tmp_path / "a", *words, "train.per_device_train_batch_size=3", "train.row_tokens=64")
    numbers = f"data.train.0.path={folder / 'numbers.jsonl'}"
    parts = train(folder, tmp_path / "b", *words, numbers, "train.gradient_accumulation_steps=3", "train.row_tokens=64")
    stream = train(
        folder,
        tmp_path / "c",
        *words,
        "data.streaming=true",
        "train.per_device_train_batch_size=3",
        "train.row_tokens=64",
    )
    for others in (parts, stream):
        for one, other in zip(whole, others, strict=True):
            for name in one.keys() - {"seconds"}:
                assert one[name] == pytest.approx(other[name], abs=2e-5), name


def no_dropout(folder):
    """A model whose new head drops nothing, so that what is dropped does not depend on how rows lie."""
    place = folder / "exact"
    if not place.exists():
        save_model(place)
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | {"classifier_dropout": 0.0}))
    return str(place)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("objective=sft",),
            "hold classes of words, which the objective sft does not learn from: say .*token_classify",
        ),
        (("objective=classify",), "learns a label, which the format tagged does not say: say format: classes"),
        (("data.train.0.format=text", "objective.num_labels=3"), "learns a class of each word, .* say format: tagged"),
        (("objective.num_labels=4",), "objective.num_labels is for 4 classes, and there are 3"),
        (("data.train.0.format=tagged",), "the data name no classes"),
        (("objective.class_weights=[1, 2]",), "objective.class_weights is for 2 classes, and there are 3"),
        (("objective.names=[O, X, Y]",), "objective.names are O, X, Y, and the data name O, B-PLACE, I-PLACE"),
        (("eval.prompts=[Hi]",), "eval.prompts are answered in words"),
    ],
)
def test_what_does_not_go_together_is_refused(folder, tmp_path, capsys, words, says):
    words = [f"train.output_dir={tmp_path / 'run'}", *words]
    assert cli.main(["train", str(folder / "recipe.yaml"), *words]) == 1
    assert re.search(says, capsys.readouterr().err.replace("\n", " "))
    assert not (tmp_path / "run").exists()


def test_a_class_beyond_the_others_is_named_by_its_place(folder, tmp_path, capsys):
    rows, out = (
        f"data.train=[{{path: {folder / 'numbers.jsonl'}, format: tagged}}]",
        f"train.output_dir={tmp_path / 'run'}",
    )
    for word, said in (("num_labels=2", "num_labels=2"), ("names=[O, B-PLACE]", "names")):
        assert cli.main(["train", str(folder / "recipe.yaml"), out, rows, f"objective.{word}"]) == 1
        says = rf"numbers.jsonl:\d+: the label is class 2, and objective.{said} has the classes 0 to 1"
        assert re.search(says, capsys.readouterr().err)
