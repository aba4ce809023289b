"""Activations that are computed again: the same gradients, less memory, and no gradient that nobody needs."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from fixtures_models import tiny_lora, tiny_model
from numerics.packed import gradients, packed_batch
from tunesmith.engine import kernels, pool
from tunesmith.engine.activations import checkpoint_activations, keep_products
from tunesmith.engine.memory import LiveTensors
from tunesmith.errors import RecipeError
from tunesmith.recipe_train import Train

CHOICES = [True, 2, 3, "selective"]
SIZES = {"num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 256}


def step(choice, adapted, **train):
    """Gradients of a step, the bytes held between its passes, and how often its layers and embedding were run."""
    model = tiny_lora(tiny_model(**SIZES)) if adapted else tiny_model(**SIZES)
    scorer = kernels.choose(model).scorer
    checkpoint_activations(model, Train(activation_checkpointing=choice, **train))
    model.train()
    batch = packed_batch((50, 30, 60), model.config.vocab_size)
    embedded = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: embedded.append(output))
    with LiveTensors() as held:
        loss = (scorer(model, batch).logps * batch.weight).sum()
        between = held.live
        loss.backward()
    return gradients(model), between, embedded[0].requires_grad


@pytest.mark.parametrize("adapted", [True, False], ids=["lora", "full"])
def test_every_choice_gives_the_same_gradients_and_holds_less(adapted):
    plain, most, embedding = step(False, adapted)
    assert embedding is not adapted
    held = {}
    for choice in CHOICES:
        found, held[choice], embedding = step(choice, adapted)
        assert embedding is not adapted, "a frozen embedding's output needs no gradient for checkpoints either"
        torch.testing.assert_close(found, plain, rtol=0, atol=0)
    assert held[True] < held[2] < held[3] < most
    assert held[True] < held["selective"] < 0.7 * most
    assert held[True] < 0.3 * most


@pytest.mark.parametrize("choice", [False, *CHOICES])
def test_products_in_memory_that_is_used_again(monkeypatch, choice):
    """What is made again is answered from what a selective checkpoint kept, and must not be an empty place."""
    model = tiny_lora(tiny_model(**SIZES)).train()
    scorer = kernels.choose(model).scorer
    checkpoint_activations(model, Train(activation_checkpointing=choice))
    batch = packed_batch((50, 30, 60), model.config.vocab_size)
    found = []
    for least in (pool.LEAST, 1, 1):
        monkeypatch.setattr(pool, "LEAST", least)
        model.zero_grad()
        (scorer(model, batch).logps * batch.weight).sum().backward()
        found.append({name: gradient.clone() for name, gradient in gradients(model).items()})
    torch.testing.assert_close(found[1:], [found[0]] * 2, rtol=1e-5, atol=1e-6)
    assert pool.POOL.used


def test_offload_keeps_the_inputs_of_layers_on_the_host(monkeypatch):
    """A recipe refuses it on a CPU, where it saves nothing and no memory can be pinned; its gradients are the same."""
    plain, *_ = step(2, adapted=True)
    asked, own = [], transformers.modeling_utils.save_on_cpu
    monkeypatch.setattr(transformers.modeling_utils, "save_on_cpu", lambda **how: (asked.append(how), own())[1])
    found, *_ = step(2, adapted=True, activation_offload=True)
    assert len(asked) == SIZES["num_hidden_layers"] / 2 and asked[0]["pin_memory"]
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


def flops(choice):
    model = tiny_lora(tiny_model(**SIZES))
    scorer = kernels.choose(model).scorer
    checkpoint_activations(model, Train(activation_checkpointing=choice))
    model.train()
    batch = packed_batch((50, 30), model.config.vocab_size)
    with FlopCounterMode(display=False) as counter:
        scorer(model, batch).logps.sum().backward()
    return counter.get_total_flops()


def test_selective_computes_no_product_again_but_those_of_low_rank():
    plain = flops(False)
    assert plain < flops("selective") < 1.05 * plain
    assert flops(True) > 1.25 * plain


class AddsInPlace(torch.autograd.Function):
    """x @ w + y, the sum made in the product's own memory."""

    @staticmethod
    def forward(ctx, x, w, a, b):
        ctx.save_for_backward(x, w, a, b)
        return (x @ w).addmm_(x @ a, b)

    @staticmethod
    def backward(ctx, gradient):
        x, w, a, b = ctx.saved_tensors
        return gradient @ w.T + gradient @ b.T @ a.T, None, x.T @ (gradient @ b.T), (x @ a).T @ gradient


def test_selective_keeps_what_an_autograd_function_adds_to_in_place():
    torch.manual_seed(0)
    w, a, b = torch.randn(8, 8), torch.randn(8, 2, requires_grad=True), torch.randn(2, 8, requires_grad=True)

    def layer(x):
        return AddsInPlace.apply(torch.sin(x), w, a, b).sin().exp()

    found = []
    for context in ({}, {"context_fn": keep_products}):
        x = torch.linspace(0, 1, 32).reshape(4, 8).requires_grad_()
        torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False, **context).sum().backward()
        found.append((x.grad, a.grad, b.grad))
        a.grad = b.grad = None
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_selective_refuses_a_product_that_changes_after_it_was_used():
    def layer(x):
        product = x @ x.T
        early = product + 1
        return product.add_(early.detach()) * early

    x = torch.randn(4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="selective: add_ changes a product that was used before"):
        torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False, context_fn=keep_products)


def test_a_model_that_cannot_says_so(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(RecipeError, match="train.activation_checkpointing=2: LlamaForCausalLM does not support"):
        checkpoint_activations(model, Train(activation_checkpointing=2))
