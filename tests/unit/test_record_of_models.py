"""What tells a model from others: each of its numbers, and what its config and its adapters make of them."""

import torch

from fixtures_models import tiny_lora, tiny_model
from tunesmith.record import model_fingerprint


def test_the_same_model_loaded_twice_is_one():
    assert model_fingerprint(tiny_model()) == model_fingerprint(tiny_model())


def test_every_number_counts():
    seen = {model_fingerprint(tiny_model())}
    for place in (0, 1, 100, -1):
        model = tiny_model()
        with torch.no_grad():
            model.model.layers[0].self_attn.o_proj.weight.view(-1)[place] += 1
        seen.add(model_fingerprint(model))
    assert len(seen) == 5


def test_half_precision_is_read_too():
    one, other = tiny_model().bfloat16(), tiny_model().bfloat16()
    assert model_fingerprint(one) == model_fingerprint(other) != model_fingerprint(tiny_model())


def test_a_config_that_changes_the_numbers_counts_and_a_name_does_not():
    model = tiny_model()
    before = model_fingerprint(model)
    model.config._name_or_path = "another folder"
    model.config.use_cache = not model.config.use_cache
    assert model_fingerprint(model) == before
    model.config.rms_norm_eps *= 10
    assert model_fingerprint(model) != before


def test_how_much_an_adapter_counts_is_part_of_it():
    one, other = tiny_lora(tiny_model(), lora_alpha=4), tiny_lora(tiny_model(), lora_alpha=8)
    assert model_fingerprint(one) != model_fingerprint(other)
    assert model_fingerprint(one) == model_fingerprint(tiny_lora(tiny_model(), lora_alpha=4))
