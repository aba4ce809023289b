"""Options and refusals of virtual tokens."""

import pytest
import torch

from fixtures_models import save_model, tiny_model, tiny_tokenizer
from tunesmith import Recipe
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
