"""Log-probabilities without logits equal log_softmax of the whole model, values and gradients."""

import copy
from dataclasses import replace

import pytest
import torch

from fixtures_models import ARCHITECTURES, tiny_lora, tiny_model, tiny_tokenizer
from numerics.packed import alone, gradients, packed_batch
from tunesmith.engine import head, kernels
from tunesmith.engine.head import Shaping
from tunesmith.engine.scores import Scorer

LENGTHS = (7, 1, 12, 4)
MORE = {"granite": {"logits_scaling": 3.0}, "cohere": {"logit_scale": 0.25, "use_qk_norm": False}}


def compare(model, batch, scorer, tolerance=2e-5):
    """Values, and gradients of a loss that weighs every token differently, in float64 and as scored."""
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    expected = alone(exact, batch)
    found = scorer(model, batch).logps
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=tolerance)
    (found * batch.weight).sum().backward()
    (expected * batch.weight).sum().backward()
    theirs, ours = gradients(exact), gradients(model)
    assert theirs.keys() == ours.keys() and ours
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name].double(), gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("arch", [*ARCHITECTURES, *MORE])
def test_equal_to_log_softmax(arch):
    model = tiny_model(arch=arch, **MORE.get(arch, {}))
    batch = packed_batch(LENGTHS, model.config.vocab_size)
    chosen = kernels.choose(model)
    assert chosen.scorer.fused, chosen.notes
    assert chosen.scorer.packed, chosen.notes
    compare(model, batch, chosen.scorer)


def test_bfloat16_autocast_scores_float32_weights(monkeypatch):
    model = tiny_model(tied=False)
    batch = packed_batch(LENGTHS, model.config.vocab_size)
    expected = alone(model, batch)
    heads = []
    logits = head.Head.logits
    monkeypatch.setattr(head.Head, "logits", lambda *a: (heads.append((*a[1], *a[0].weights)), logits(*a))[1])
    with torch.autocast("cpu", torch.bfloat16):
        chosen = kernels.choose(model)
        found = chosen.scorer(model, batch).logps
    assert chosen.scorer.packed and chosen.scorer.fused, chosen.notes
    assert found.dtype == torch.float32
    assert {one.dtype for pair in heads for one in pair} == {torch.bfloat16}
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.1)
    (expected * batch.weight).sum().backward()
    theirs = gradients(model)
    model.zero_grad()
    (found * batch.weight).sum().backward()
    ours = gradients(model)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        assert ours[name].dtype == torch.float32
        assert (ours[name] - gradient).norm() < 0.05 * gradient.norm(), name


def test_activation_checkpointing_changes_no_gradient():
    model = tiny_model()
    batch = packed_batch(LENGTHS, model.config.vocab_size)
    scorer = kernels.choose(model).scorer
    model.train()
    (scorer(model, batch).logps * batch.weight).sum().backward()
    plain = gradients(model)
    model.zero_grad()
    model.activation_checkpointing_enable()
    (scorer(model, batch).logps * batch.weight).sum().backward()
    torch.testing.assert_close(gradients(model), plain, rtol=0, atol=0)


def test_float16_weights_are_scored_on_a_cpu():
    model = tiny_model(tied=False)
    batch = packed_batch(LENGTHS, model.config.vocab_size)
    expected = alone(model, batch)
    scorer = kernels.choose(model.half()).scorer
    torch.testing.assert_close(scorer(model, batch).logps, expected, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tokens", [1, 5, 1000])
def test_blocks_and_tied_heads_change_nothing(tied, tokens):
    model = tiny_model(tied=tied)
    kernels.choose(model)
    scorer = Scorer.of(model)
    scorer = replace(scorer, means=replace(scorer.means, tokens=tokens, logits=tokens * 37))
    compare(model, packed_batch(LENGTHS, model.config.vocab_size), scorer)


def test_the_unfused_head_gives_the_same():
    model = tiny_model()
    kernels.choose(model)
    compare(model, packed_batch(LENGTHS, model.config.vocab_size), Scorer.of(model, fused=False))


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")  # peft, of merging
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapted_head_is_fused(tied):
    model = tiny_lora(tiny_model(tied=tied), target_modules=["q_proj", "lm_head"])
    chosen = kernels.choose(model)
    assert chosen.scorer.fused and not chosen.notes
    compare(model, packed_batch(LENGTHS, model.get_base_model().config.vocab_size), chosen.scorer)


def test_a_head_that_is_saved_whole_is_fused():
    model = tiny_lora(tiny_model(tied=False), modules_to_save=["lm_head"])
    chosen = kernels.choose(model)
    assert chosen.scorer.fused and not chosen.notes
    compare(model, packed_batch(LENGTHS, model.get_base_model().config.vocab_size), chosen.scorer)
    assert any("lm_head.modules_to_save" in name for name in gradients(model))


def test_a_head_of_another_kind_falls_back_and_says_so():
    model = tiny_lora(tiny_model(tied=False), target_modules=["lm_head"], use_dora=True)
    chosen = kernels.choose(model)
    assert not chosen.scorer.fused
    assert any("the fused head is off" in note for note in chosen.notes)


def test_a_frozen_head_costs_no_gradient_of_its_own():
    model = tiny_lora(tiny_model(tied=False))
    chosen = kernels.choose(model)
    batch = packed_batch(LENGTHS, model.get_base_model().config.vocab_size)
    chosen.scorer(model, batch).logps.sum().backward()
    assert chosen.scorer.head.weight.grad is None
    assert all("lora" in name for name in gradients(model))


def test_nothing_asked_gives_zeros_and_a_backward_pass():
    model = tiny_model()
    kernels.choose(model)
    batch = packed_batch((4, 3), model.config.vocab_size, asked=0.0)
    logps = Scorer.of(model)(model, batch).logps
    assert not logps.any()
    logps.sum().backward()


def test_the_head_is_never_given_a_position(monkeypatch):
    model = tiny_model(tied=False)
    kernels.choose(model)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.shape))
    Scorer.of(model)(model, packed_batch(LENGTHS, len(tiny_tokenizer())))
    assert seen == [(1, 0, model.config.vocab_size)]


def test_a_model_whose_logits_are_shaped_unknown_to_us_falls_back(monkeypatch):
    model = tiny_model(arch="granite", logits_scaling=3.0)
    monkeypatch.setattr(Shaping, "of", classmethod(lambda cls, config: Shaping()))
    chosen = kernels.choose(model)
    assert not chosen.scorer.fused
    assert any("log-probabilities differ" in note for note in chosen.notes)
