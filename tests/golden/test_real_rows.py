"""Published rows, where a checkout has them beside it: each is read, accounted for, and rendered as the model sees it.

They belong to others and are not part of this repository. Without them the tests skip and say so.
"""

from pathlib import Path

import pytest

from invariants.whole_runs import metrics, train
from tunesmith.data.ledger import Ledger
from tunesmith.data.load import load_rows
from tunesmith.data.render import rendered
from tunesmith.engine.model import load_tokenizer
from tunesmith.recipe import Model, Recipe

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the published rows are not in {DATA.name}/ beside the checkout"
)
QUESTIONS = {"instruction": "Question", "output": "Answer"}


def source(name, **options):
    return {"path": str(DATA / name), **options}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Model(path="builtin:tiny"))


@pytest.mark.parametrize(
    ("one", "objective", "rows"),
    [
        (source("alpaca_en_demo.json"), "sft", 999),
        (source("identity.json", replace={"{{name}}": "Ada", "{{author}}": "us"}), "sft", 91),
        (source("MedQA2019.xlsx", columns=QUESTIONS), "sft", 690),
        (source("c4_demo.jsonl"), "pretrain", 300),
        (source("wiki_demo.txt"), "pretrain", 30),
    ],
    ids=lambda value: Path(value["path"]).name if isinstance(value, dict) else None,
)
def test_every_row_is_accounted_for(tokenizer, one, objective, rows):
    recipe = Recipe(
        model="builtin:tiny", data={"train": one, "max_tokens": 4096}, objective=objective, train={"row_tokens": 4096}
    )
    ledger = Ledger()
    for sample in rendered(recipe, tokenizer):
        ledger.add(sample)
    found = ledger.as_dict()
    assert found["rows_read"] == rows
    assert found["rows_kept"] + sum(entry["count"] for entry in found["dropped"].values()) == rows
    assert found["rows_kept"] > 0.9 * rows
    assert 0 < found["trained_tokens"] < found["tokens"]


def test_rows_are_full(tokenizer):
    recipe = Recipe(
        model="builtin:tiny",
        data={"train": source("alpaca_en_demo.json"), "max_tokens": 4096},
        train={"row_tokens": 4096, "num_train_epochs": 1},
    )
    prepared = recipe.data.template.prepare(tokenizer)
    assert load_rows(recipe, prepared).train.fill >= 0.97


@pytest.mark.slow
def test_a_spreadsheet_trains(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: builtin:tiny\ndata:\n  train:\n    path: {DATA / 'MedQA2019.xlsx'}\n"
        "    columns: {instruction: Question, output: Answer}\n    num_samples: 60\n  eval: 10\n  max_tokens: 512\n"
        "optimizer: {learning_rate: 2.0e-3}\ntrain: {max_steps: 12, row_tokens: 1024}\n"
    )
    losses = [line["eval_loss"] for line in metrics(train(recipe, tmp_path / "run")) if "eval_loss" in line]
    assert losses[-1] < losses[0]
