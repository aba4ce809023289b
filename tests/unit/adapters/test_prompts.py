"""Options and refusals of virtual tokens."""

import json
import math

import pytest
import torch

from fixtures_models import save_model, tiny_model, tiny_tokenizer
from tunesmith import Recipe, train
from tunesmith.adapters.prompt import Prompt
from tunesmith.errors import RecipeError

LEAST = {"model": "m", "data": {"train": "rows.json"}}


def test_virtual_tokens_begin_as_a_text(tmp_path):
    save_model(tmp_path, tiny_model())
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    text = Prompt(num_virtual_tokens=6, prompt_tuning_init="TEXT", prompt_tuning_init_text="Hello, how").apply(model)
    ids = tiny_tokenizer()("Hello, how")["input_ids"]
    wanted = model.get_input_embeddings().weight[torch.tensor((ids * 6)[:6])]
    assert torch.equal(text.prompt_encoder["default"].embedding.weight, wanted)


def test_a_text_without_a_tokenizer_is_one_clear_line():
    with pytest.raises(RecipeError, match=r"adapter\.prompt_tuning_init: "):
        Prompt(prompt_tuning_init="TEXT", prompt_tuning_init_text="Hello").apply(tiny_model())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapter": {"type": "prompt", "prompt_tuning_init": "TEXT"}}, "prompt_tuning_init_text are set together"),
        ({"adapter": {"type": "prefix", "encoder_hidden_size": 8}}, "prefix_projection=true"),
        ({"adapter": "prefix", "objective": "reward"}, "reward trains a head.*adapter=lora"),
        ({"adapter": "p_tuning", "objective": "seq2seq"}, "seq2seq has an encoder.*adapter=lora"),
    ],
)
def test_what_does_not_go_together_is_said(options, words):
    with pytest.raises(RecipeError, match=words):
        Recipe(**LEAST, **options)


@pytest.mark.parametrize("objective", ["sft", "pretrain", "dpo", "kto", "orpo", "dft"])
def test_objectives_of_words_go_with_them(objective):
    assert Recipe(**LEAST, adapter="prefix", objective=objective).adapter.num_virtual_tokens == 20


@pytest.mark.parametrize("compute", ["once", "step"])
def test_preferences_are_measured_from_the_model_without_virtual_tokens(tmp_path, compute):
    """Whatever the virtual tokens are, so that the loss of the first evaluation is not log 2 as of a fresh update."""
    save_model(tmp_path / "model", tiny_model(scale=0.1))
    pairs = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No" + " idea" * i} for i in range(12)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    losses = []
    for number, shared in enumerate((True, False)):
        recipe = Recipe(
            model={"path": str(tmp_path / "model"), "dtype": "float32"},
            data={
                "train": str(tmp_path / "pairs.json"),
                "max_tokens": 64,
                "eval": 2,
                "shared_prefix": shared,
                "cache_dir": str(tmp_path / "cache"),
            },
            adapter={"type": "prefix", "num_virtual_tokens": 4},
            objective="dpo",
            reference={"compute": compute},
            train={"max_steps": 3, "row_tokens": 256, "device": "cpu", "output_dir": str(tmp_path / f"run-{number}")},
        )
        lines = (train(recipe).folder / "metrics.jsonl").read_text().splitlines()
        losses.append([line["eval_loss"] for line in map(json.loads, lines) if "eval_loss" in line])
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5) and losses[0][-1] < losses[0][0]
    assert abs(losses[0][0] - math.log(2)) > 1e-4
