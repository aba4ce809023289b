"""The arithmetic of a step: against torch's own count of matrix products, and by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fixtures_models import tiny_lora, tiny_model
from tunesmith.engine.flops import Attention, Cost, Sequence

TOKENS = 20
LINEAR, ATTENTION = ("mm", "addmm"), ("bmm",)


def counted(model):
    """torch's count of one step of a model over one sequence, every token asked: linear layers, attention."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    base.set_attn_implementation("eager")
    counter = FlopCounterMode(display=False)
    with counter:
        model(input_ids=torch.arange(TOKENS)[None], use_cache=False).logits.float().logsumexp(-1).sum().backward()
    found = {str(name).rpartition(".")[2]: flops for name, flops in counter.get_flop_counts()["Global"].items()}
    assert found.keys() <= {*LINEAR, *ATTENTION}
    linear, attention = (sum(found.get(name, 0) for name in names) for names in (LINEAR, ATTENTION))
    return linear, attention


def of_square(cost):
    """Attention of a cost over the whole square, which eager attention computes."""
    return sum(layer.flops_per_pair for layer in cost.attention) * TOKENS**2


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "phi3", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_full_training_is_what_torch_counts(arch, tied):
    model = tiny_model(arch=arch, tied=tied)
    cost = Cost.of(model)
    assert ((cost.per_token + cost.per_asked) * TOKENS, of_square(cost)) == counted(model)


def test_adapters_on_a_frozen_model_are_what_torch_counts():
    model = tiny_lora(tiny_model(arch="gpt_neox", use_parallel_residual=False))  # query, key and value in one
    cost = Cost.of(model)
    assert ((cost.per_token + cost.per_asked) * TOKENS, of_square(cost)) == counted(model)


def test_what_is_counted_too_much_of_adapters_is_little():
    model = tiny_lora(tiny_model())
    cost, (linear, attention) = Cost.of(model), counted(model)
    # key and value of the first layer, and their updates' first halves, need no gradient of what they are given
    assert (cost.per_token + cost.per_asked) * TOKENS - linear == TOKENS * 2 * 2 * (32 * 16 + 32 * 4)
    assert of_square(cost) == attention


def test_an_adapted_head_is_of_asked_tokens():
    model = tiny_lora(tiny_model(arch="phi3", tied=False), target_modules=["lm_head"])
    cost = Cost.of(model)
    vocabulary = model.get_base_model().config.vocab_size
    assert ((cost.per_token + cost.per_asked) * TOKENS, of_square(cost)) == counted(model)
    # forward of the head, and of an update of rank 4 whose input needs no gradient: nothing below it is trained
    assert cost.per_asked == 2 * 32 * vocabulary + 4 * 32 * 4 + 6 * 4 * vocabulary


def test_a_model_by_hand():
    # 2 layers: q 32x32, k and v 32x16, o 32x32, gate, up and down 32x64; the head 32x50
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
    model = tiny_model(vocab=50)
    assert Cost.of(model) == Cost(6 * 2 * layer, 6 * 32 * 50, (Attention((2 + 4) * 2 * 8 * 4, None),) * 2)
    model.requires_grad_(False)
    assert Cost.of(model) == Cost(2 * 2 * layer, 2 * 32 * 50, (Attention(2 * 2 * 8 * 4, None),) * 2)
    model.model.layers[1].requires_grad_(True)  # its first layer needs no gradient of what it is given
    first, second = 2 * layer, 6 * layer - 2 * 32 * 32
    cost = Cost.of(model)
    assert (cost.per_token, cost.per_asked) == (first + second, 4 * 32 * 50)
    assert cost.attention == (Attention(2 * 2 * 8 * 4, None), Attention(6 * 2 * 8 * 4, None))


def test_a_token_goes_through_some_experts():
    model = tiny_model(
        arch="mixtral", vocab=50, num_local_experts=8, num_experts_per_tok=2, head_dim=8, num_hidden_layers=1
    )
    attention = 2 * 32 * 32 + 2 * 32 * 16
    assert Cost.of(model).per_token == 6 * (attention + 2 * 3 * 32 * 64 + 32 * 8)


def test_attention_is_by_the_lengths_and_the_window():
    cost = Cost(0, 0, (Attention(1, None), Attention(10, 3)))
    # 4 tokens see 1+2+3+4, in a window of 3 1+2+3+3; 2 tokens see 3
    assert cost.of_step([Sequence(4), Sequence(2)], 0) == (10 + 3) + 10 * (9 + 3)
    # 2 tokens behind 4 that they share see 5+6, in a window of 3 3+3
    assert cost.of_step([Sequence(2, shared=4)], 0) == 11 + 10 * 6
    assert Cost(7, 100, ()).of_step([Sequence(4), Sequence(2)], 3) == 6 * 7 + 300


def test_windows_are_those_of_the_layers():
    model = tiny_model(arch="gemma2")  # a window of 64 in every second layer
    assert sorted(layer.window or 0 for layer in Cost.of(model).attention) == [0, 64]
    assert {layer.window for layer in Cost.of(tiny_model(arch="mistral", sliding_window=5)).attention} == {5}
