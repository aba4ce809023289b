"""Reward models and classifiers from the command line to plain transformers."""

import json
import random
import re

import pytest
import torch
import yaml

from fixtures_models import save_model
from fixtures_values import WORDS, save_encoder
from tunesmith.cli import main as cli

CLASSES = ("greeting", "question")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, rows and recipes."""
    place = tmp_path_factory.mktemp("values")
    save_model(place / "model")
    for arch in ("bert", "distilbert"):
        save_encoder(place / arch, arch)
    chance = random.Random(0)
    pairs = [
        {"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No" + " idea" * chance.randint(1, 9)}
        | {"by": i / 10}
        for i in range(40)
    ]
    texts = [
        {"text": f"{first} {' '.join(chance.choices(WORDS[3:], k=chance.randint(1, 12)))}", "label": CLASSES[number]}
        for _ in range(30)
        for number, first in enumerate(("hello", "what"))
    ]
    several = [
        {"text": row["text"], "label": [row["label"]] + (["moon"] if "moon" in row["text"] else [])} for row in texts
    ]
    numbers = [{"text": row["text"], "label": CLASSES.index(row["label"])} for row in texts]
    for name, rows in (("pairs", pairs), ("texts", texts), ("several", several), ("numbers", numbers)):
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    data = {"eval": 12, "max_tokens": 60, "cache_dir": str(place / "cache")}
    common = {
        "model": {"path": str(place / "model"), "dtype": "float32"},
        "adapter": {"type": "lora", "r": 4},
        "optimizer": {"learning_rate": 5e-3},
        "train": {"row_tokens": 256, "num_train_epochs": 3},
    }
    read = {"type": "classes", "classes": list(CLASSES)}
    recipes = {
        "reward": {"data": {"train": [{"path": str(place / "pairs.jsonl"), "format": {"type": "pairs"}}]}},
        "classify": {"data": {"train": [{"path": str(place / "texts.jsonl"), "format": read}], "template": "plain"}},
    }
    for name, recipe in recipes.items():
        whole = common | {"objective": name, "data": recipe["data"] | data}
        (place / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    return place


def train(folder, name, out, *words):
    assert cli.main(["train", str(folder / f"{name}.yaml"), f"train.output_dir={out}", *words]) == 0
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def plain(folder, run, adapted):
    """The model that plain transformers or plain peft loads, and its tokenizer."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    final = run / "final"
    if adapted:
        base = AutoModelForSequenceClassification.from_pretrained(adapted, config=AutoConfig.from_pretrained(final))
        model = PeftModel.from_pretrained(base, final)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(final)
    return model.eval(), AutoTokenizer.from_pretrained(final)


def scored(capsys, *words):
    capsys.readouterr()
    assert cli.main(["score", *map(str, words), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft, asking by an old name
@pytest.mark.parametrize("adapter", ["lora", "full", "freeze"])
def test_a_reward_model_learns_and_is_what_plain_transformers_loads(folder, tmp_path, capsys, adapter):
    lines = train(folder, "reward", tmp_path / "run", f"adapter={{type: {adapter}}}")
    assert lines[-1]["eval_loss"] < 0.5 < lines[0]["eval_loss"]
    assert lines[-1]["eval_accuracy"] == 1.0 and lines[-1]["eval_margins"] > lines[0]["eval_margins"]
    found = scored(capsys, tmp_path / "run", folder / "pairs.jsonl")
    assert len(found) == 40 and all(row["answers"][0]["answer"] == 0 for row in found)
    model, tokenizer = plain(folder, tmp_path / "run", folder / "model" if adapter == "lora" else None)
    assert model.config.num_labels == 1 and model.config.id2label == {0: "reward"}
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()][:5]
    said = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}],
            tokenize=False,
        )
        for row in rows
    ]
    with torch.no_grad():
        logits = model(**tokenizer(said, return_tensors="pt", padding=True, add_special_tokens=False)).logits[:, 0]
    ours = [next(one["reward"] for one in row["answers"] if one["answer"] == 0) for row in found[:5]]
    torch.testing.assert_close(torch.tensor(ours), logits, rtol=1e-4, atol=1e-4)


def test_margins_and_how_a_step_is_cut(folder, tmp_path):
    words = ("data.train.0.format.margin=by", "train.max_steps=3", "adapter=full", "eval={}")
    whole = train(folder, "reward", tmp_path / "a", *words, "train.per_device_train_batch_size=3")
    parts = train(folder, "reward", tmp_path / "b", *words, "train.gradient_accumulation_steps=3")
    for one, other in zip(whole, parts, strict=True):
        for name in one.keys() - {"seconds", "tokens"}:
            assert one[name] == pytest.approx(other[name], abs=2e-5), name
    without = train(folder, "reward", tmp_path / "c", *words[1:], "train.per_device_train_batch_size=3")
    assert whole[0]["eval_loss"] > without[0]["eval_loss"] + 0.1
    assert whole[0]["eval_margins"] == pytest.approx(without[0]["eval_margins"], abs=1e-5)


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("model", ["model", "distilbert", "bert"])
def test_classes_are_learned_counted_and_drawn(folder, tmp_path, capsys, model):
    lines = train(
        folder,
        "classify",
        tmp_path / "run",
        f"model.path={folder / model}",
        "train.max_steps=60",
        "train.row_tokens=64",
    )
    last = lines[-1]
    counts = torch.tensor(last["eval_confusion"], dtype=torch.float64)
    assert counts.shape == (2, 2) and counts.sum() == 12
    assert last["eval_accuracy"] == pytest.approx(float(counts.trace() / 12)) and last["eval_accuracy"] > 0.9
    right, held, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    assert last["eval_f1_macro"] == pytest.approx(float((2 * right / (held + said)).mean()))
    assert (tmp_path / "run" / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    assert ", 60 samples trained (100.0%), longest" in capsys.readouterr().err
    found = scored(capsys, tmp_path / "run", folder / "texts.jsonl")
    loaded, tokenizer = plain(folder, tmp_path / "run", folder / model)
    assert loaded.config.id2label == dict(enumerate(CLASSES))
    assert loaded.config.problem_type == "single_label_classification"
    texts = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()][:5]
    end = tokenizer.eos_token if model == "model" else ""
    with torch.no_grad():
        batch = tokenizer([text + end for text in texts], return_tensors="pt", padding=True)
        shares = loaded(**batch).logits.softmax(1)
    ours = [list(row["scores"].values()) for row in found[:5]]
    torch.testing.assert_close(torch.tensor(ours), shares, rtol=1e-4, atol=1e-4)
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())["train"]
    assert ("filled_up" in ledger) == (model != "model")


def test_several_classes_at_once(folder, tmp_path, capsys):
    words = (f"data.train.0.path={folder / 'several.jsonl'}", "data.train.0.format.classes=[greeting, question, moon]")
    lines = train(folder, "classify", tmp_path / "run", *words, "objective.multi_label=true")
    assert torch.tensor(lines[-1]["eval_confusion"]).shape == (3, 2, 2)
    assert lines[-1]["eval_loss"] < lines[0]["eval_loss"]
    found = scored(capsys, tmp_path / "run", folder / "several.jsonl")
    assert all(isinstance(row["label"], list) for row in found)


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_an_export_says_what_the_run_does(folder, tmp_path, capsys, kind):
    train(folder, "reward", tmp_path / "run", "train.max_steps=3")
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), f"type={kind}"]) == 0
    assert "the same values as the run" in capsys.readouterr().out
    ours, theirs = (scored(capsys, tmp_path / one, folder / "pairs.jsonl") for one in ("run", "out"))
    for one, other in zip(ours, theirs, strict=True):
        pairs = zip(one["answers"], other["answers"], strict=True)
        assert all(a["reward"] == pytest.approx(b["reward"], abs=1e-4) for a, b in pairs)


def test_the_best_of_some_answers(folder, tmp_path, capsys):
    train(folder, "reward", tmp_path / "run", "train.max_steps=2")
    words = ("--sample", "3", "--model", folder / "model", "--max-new-tokens", "5")
    found = scored(capsys, tmp_path / "run", folder / "pairs.jsonl", *words)
    rewards = [[one["reward"] for one in row["answers"]] for row in found]
    assert len(found) == 40 and all(one == sorted(one, reverse=True) for one in rewards)
    assert any(len(one) > 1 for one in rewards)


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("reward", ("objective=sft",), "objective=cpo or dpo|objective=.*reward"),
        ("reward", ("data.train.0.format={type: pairs, margin: by}", "objective=dpo"), "leave format.margin out"),
        ("reward", ("data.train.0.format={type: pairs, only: chosen}",), "chosen and rejected conversations"),
        ("reward", ("eval.prompts=[Hi]",), "eval.prompts are answered in words"),
        ("reward", ("objective=classify", "objective.num_labels=2"), "does not learn from|learns from"),
        (
            "classify",
            ("data.train.0.format={type: text}", "objective.num_labels=2"),
            "learns a label, which the format text does not say",
        ),
        ("classify", ("objective.num_labels=3",), "objective.num_labels is for 3 classes, and there are 2"),
        ("classify", ("objective.multi_label=true",), r"texts.jsonl:1: the label is one class"),
        ("classify", ("data.train.0.format.classes=[]",), "the data name no classes"),
    ],
)
def test_what_does_not_go_together_is_refused(folder, tmp_path, capsys, name, words, says):
    recipe = str(folder / f"{name}.yaml")
    assert cli.main(["train", recipe, f"train.output_dir={tmp_path / 'run'}", *words]) == 1
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_label_beyond_the_classes_is_named_by_its_place(folder, tmp_path, capsys):
    rows = (folder / "numbers.jsonl").read_text() + json.dumps({"text": "how to", "label": 2}) + "\n"
    (tmp_path / "rows.jsonl").write_text(rows)
    words = (f"data.train=[{{path: {tmp_path / 'rows.jsonl'}, format: classes}}]", "objective.num_labels=2")
    out = f"train.output_dir={tmp_path / 'run'}"
    assert cli.main(["train", str(folder / "classify.yaml"), out, *words]) == 1
    assert "rows.jsonl:61: the label is class 2" in capsys.readouterr().err


def test_a_model_that_says_words_scores_nothing_and_a_judge_does_not_chat(folder, tmp_path, capsys):
    assert cli.main(["score", str(folder / "model"), str(folder / "pairs.jsonl")]) == 1
    assert "says words, and no rewards or classes" in capsys.readouterr().err
    train(folder, "reward", tmp_path / "run", "train.max_steps=1")
    assert cli.main(["chat", str(tmp_path / "run")]) == 1
    assert "see tunesmith score" in capsys.readouterr().err
    assert cli.main(["score", str(tmp_path / "run"), str(folder / "pairs.jsonl"), "--sample", "2"]) == 2
    assert "say --model MODEL_OR_RUN too" in capsys.readouterr().err
