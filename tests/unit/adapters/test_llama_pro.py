"""Block expansion: where the copies stand, that they say nothing at first, and that the result is an ordinary model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from fixtures_models import ARCHITECTURES, tiny_model
from tunesmith.adapters.llama_pro import LlamaPro, plan
from tunesmith.errors import RecipeError
from tunesmith.generate.engine import greedy_ids

IDS = torch.arange(3, 40)[None]


@pytest.mark.parametrize(
    ("layers", "new", "sources", "copies"),
    [
        (4, 2, [0, 1, 1, 2, 3, 3], {2, 5}),  # a copy behind each half
        (2, 2, [0, 0, 1, 1], {1, 3}),
        (5, 2, [0, 1, 1, 2, 3, 4, 4], {2, 6}),  # groups of 2 and 3
        (3, 1, [0, 1, 2, 2], {3}),
    ],
)
def test_copies_stand_behind_groups_that_are_as_equal_as_can_be(layers, new, sources, copies):
    assert plan(layers, new) == (sources, copies)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_expanded_model_says_the_same_and_is_an_ordinary_one(arch, tmp_path):
    own = tiny_model(arch=arch, num_hidden_layers=4)(input_ids=IDS).logits
    model = LlamaPro(num_new_layers=2).apply(tiny_model(arch=arch, num_hidden_layers=4)).eval()
    assert torch.equal(model(input_ids=IDS).logits, own) and model.config.num_hidden_layers == 6
    trained = {name.split(".")[2] for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {"2", "5"}
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(6))
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.add_(torch.full_like(one, 0.03))
    said = model(input_ids=IDS).logits
    assert not torch.allclose(said, own, atol=1e-3)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(input_ids=IDS).logits, said)
    step, greedy = IDS, []
    for _ in range(6):  # without a cache
        greedy.append(int(loaded(input_ids=step, use_cache=False).logits[0, -1].argmax()))
        step = torch.cat([step, torch.tensor([[greedy[-1]]])], dim=1)
    assert list(greedy_ids(model, IDS[0].tolist(), 6)) == list(greedy_ids(loaded, IDS[0].tolist(), 6)) == greedy


def test_what_is_listed_for_each_block_is_listed_for_the_copies_too():
    model = LlamaPro(num_new_layers=2).apply(tiny_model(arch="gemma2", num_hidden_layers=4))
    kinds = ["sliding_attention", "full_attention"]
    assert model.config.layer_types == [*kinds, kinds[1], *kinds, kinds[1]]
    assert [layer.self_attn.sliding_window for layer in model.model.layers] == [64, None, None, 64, None, None]


def test_blocks_that_still_say_something_are_refused(monkeypatch):
    monkeypatch.setattr("tunesmith.adapters.llama_pro.WRITING", ("o_proj",))
    with pytest.raises(RecipeError, match="cannot be copied without a change"):
        LlamaPro().apply(tiny_model())
    with pytest.raises(RecipeError, match="has 2 blocks to copy"):
        LlamaPro(num_new_layers=3).apply(tiny_model())
