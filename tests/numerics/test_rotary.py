"""Queries and keys turned in one pass, as transformers' models turn them; what is called otherwise stays theirs."""

import pytest
import torch
from transformers.models.cohere.modeling_cohere import CohereAttention
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from tunesmith.engine import rotary
from tunesmith.engine.elementwise import PLAIN, compiled


def leaves(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch 2.13's own, in inductor
@pytest.mark.parametrize("ops", ["plain", "compiled"])
def test_values_and_gradients(ops):
    query, key = leaves((2, 4, 5, 8), (2, 2, 5, 8))
    cos, sin = (one.detach() for one in leaves((2, 5, 8), (2, 5, 8)))  # halves that are not alike, too
    expected = apply_rotary_pos_emb(query, key, cos, sin)
    found = rotary._Turn.apply(query, key, cos, sin, PLAIN if ops == "plain" else compiled())
    torch.testing.assert_close(found, expected)
    given = [torch.randn_like(one) for one in expected]
    torch.testing.assert_close(
        torch.autograd.grad(found, [query, key], given), torch.autograd.grad(expected, [query, key], given)
    )


def test_which_layers_turn():
    forward = rotary.turning(LlamaAttention, PLAIN)
    assert forward.__code__ is LlamaAttention.forward.__code__
    assert LlamaAttention.forward.__globals__[rotary.NAME] is apply_rotary_pos_emb  # nobody else's has changed
    assert rotary.turning(CohereAttention, PLAIN) is None  # in pairs, not in halves
    assert rotary.turning(torch.nn.Linear, PLAIN) is None


@pytest.mark.parametrize(
    "function", [lambda: None, lambda *args: None, lambda *args: (args[0].double(), args[1]), lambda *args: args[9]]
)
def test_a_function_of_that_name_that_does_something_else(function):
    assert not rotary._is_turn(function)


def test_calls_in_another_way_stay_theirs():
    query, key, cos, sin = (one.detach() for one in leaves((1, 4, 1, 8), (1, 2, 5, 8), (1, 5, 8), (1, 5, 8)))
    ours = rotary.turning(LlamaAttention, PLAIN).__globals__[rotary.NAME]
    places = query.expand(1, 4, 5, 8).transpose(1, 2)
    expected = apply_rotary_pos_emb(places, key.transpose(1, 2), cos, sin, unsqueeze_dim=2)
    torch.testing.assert_close(ours(q=places, k=key.transpose(1, 2), cos=cos, sin=sin, unsqueeze_dim=2), expected)
    torch.testing.assert_close(ours(query, key, cos, sin), apply_rotary_pos_emb(query, key, cos, sin))
