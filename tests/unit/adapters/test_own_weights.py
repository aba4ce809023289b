"""Adapters that train some of a model's own numbers: which, in which precision, and what they refuse."""

import pytest
import torch
from torch import nn

from fixtures_models import tiny_model
from tunesmith.adapters.bitfit import BitFit
from tunesmith.adapters.freeze import Freeze
from tunesmith.adapters.layernorm import LayerNorm
from tunesmith.errors import RecipeError


def trained(model):
    return {name for name, one in model.named_parameters() if one.requires_grad}


def test_layernorm_trains_copies_of_all_norms_in_float32_and_the_body_keeps_its_precision():
    model = LayerNorm().apply(tiny_model(arch="qwen3").bfloat16())  # which has norms of queries and keys
    names = {name.partition("base_model.model.model.")[2].partition(".ln_tuning")[0] for name in trained(model)}
    each = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
    assert names == {f"layers.{layer}.{norm}" for layer in (0, 1) for norm in each} | {"norm"}
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}
    ids = torch.arange(9)[None]
    own = tiny_model(arch="qwen3").bfloat16()(input_ids=ids).logits
    assert torch.equal(model(input_ids=ids).logits, own)


def test_layernorm_says_that_a_model_has_no_norms():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

    with pytest.raises(RecipeError, match="Bare has no norm with weights"):
        LayerNorm().apply(Bare())


def test_bitfit_trains_the_biases_and_says_what_is_like_it_where_there_are_none():
    model = BitFit().apply(tiny_model(arch="qwen2"))
    assert trained(model) == {
        f"model.layers.{layer}.self_attn.{name}_proj.bias" for layer in (0, 1) for name in ("q", "k", "v")
    }
    with pytest.raises(RecipeError, match="LlamaForCausalLM has no biases here.*adapter=layernorm"):
        BitFit().apply(tiny_model())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"embeddings": True}, {"model.embed_tokens.weight"}),
        ({"head": True}, {"lm_head.weight"}),
        ({"head": True, "train_matching": r"^model\.norm"}, {"lm_head.weight", "model.norm.weight"}),
    ],
)
def test_freeze_trains_embeddings_and_head_where_they_are_said(options, expected):
    assert trained(Freeze(num_layers=0, **options).apply(tiny_model(tied=False))) == expected


def test_freeze_trains_tied_embeddings_with_the_head_or_not_at_all():
    both = Freeze(num_layers=0, embeddings=True, head=True).apply(tiny_model())
    assert trained(both) == {"model.embed_tokens.weight"}
    for said in ({"train_matching": "lm_head|embed"}, {"train_matching": "lm_head", "embeddings": True}):
        assert trained(Freeze(num_layers=0, **said).apply(tiny_model())) == {"model.embed_tokens.weight"}
    for said in ("lm_head", "embed_tokens"):
        with pytest.raises(RecipeError, match=f"name both or none .it was '{said}'"):
            Freeze(num_layers=0, train_matching=said).apply(tiny_model())
    assert trained(Freeze(num_layers=0, train_matching="lm_head").apply(tiny_model(tied=False))) == {"lm_head.weight"}
    for options in ({"head": True}, {"embeddings": True}):
        with pytest.raises(RecipeError, match="the head of LlamaForCausalLM is its embeddings"):
            Freeze(**options).apply(tiny_model())
