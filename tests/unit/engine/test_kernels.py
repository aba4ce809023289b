"""Which kernels are chosen, what is said, and that a model can be given back."""

import pytest
import torch

from fixtures_models import tiny_lora, tiny_model
from tunesmith.engine import attention, kernels
from tunesmith.engine.compat import attention_of
from tunesmith.engine.trial import Trial


@pytest.fixture(params=["plain", "adapted"])
def model(request):
    made = tiny_model()
    return made if request.param == "plain" else tiny_lora(made)


def config(model):
    return (model.get_base_model() if hasattr(model, "peft_config") else model).config


def test_a_model_is_given_back_as_it_came(model):
    config(model).use_cache = True
    chosen = kernels.choose(model)
    assert config(model)._attn_implementation == attention.NAME
    config(model).use_cache = False  # as transformers' Trainer does
    chosen.restore(model)
    assert config(model)._attn_implementation == "sdpa"
    assert config(model).use_cache is True


def test_packed_attention_of_an_earlier_run_is_not_taken_for_the_models_own(model):
    kernels.choose(model)
    again = kernels.choose(model)
    assert again.own_attention == "sdpa"
    assert again.scorer.packed and not again.notes


def test_a_model_that_was_loaded_with_eager_attention_keeps_it():
    model = tiny_model()
    model.set_attn_implementation("eager")
    chosen = kernels.choose(model)
    assert attention_of(model) == chosen.own_attention == "eager"
    assert chosen.notes == (
        "packed attention is off (LlamaForCausalLM runs eager attention): transformers' eager with its packed mask "
        "is used",
    )


@pytest.mark.parametrize("failure", [IndexError("index 9 is out of range"), AssertionError("a size")])
def test_a_failure_of_packed_attention_is_a_note(monkeypatch, failure):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(attention, "attention", fail)
    model = tiny_model()
    chosen = kernels.choose(model)
    assert not chosen.scorer.packed
    assert str(failure) in chosen.notes[0]
    assert attention_of(model) == "sdpa"


def test_whole_logits_are_said(monkeypatch):
    model = tiny_model(tied=False)
    model.lm_head = type("Head", (torch.nn.Linear,), {})(32, model.config.vocab_size, bias=False)
    forward = type(model).forward

    def without_choice(self, input_ids=None, position_ids=None, use_cache=None, **kwargs):
        return forward(self, input_ids=input_ids, position_ids=position_ids, use_cache=use_cache, **kwargs)

    monkeypatch.setattr(type(model), "forward", without_choice)
    notes = kernels.choose(model).notes
    assert notes[-1].startswith("LlamaForCausalLM makes the logits of every token")


def test_in_half_precision_twice_the_rounding_of_the_models_own_two_attentions_is_allowed():
    model, reference = tiny_model().bfloat16(), torch.tensor([[-10.0, -11.0]])

    def alone(model, batch):
        return reference + torch.tensor([[0.2, 0.6]]) * (attention_of(model) == "eager")

    trial = Trial.of(model, None, alone)
    assert trial.allowed == pytest.approx((2 * 0.4, 2 * 0.6)) and attention_of(model) == "sdpa"
    assert trial.agree(reference + torch.tensor([[0.4, 1.1]]), reference)
    assert not trial.agree(reference + torch.tensor([[0.1, 1.3]]), reference)
    assert not trial.agree(reference + torch.tensor([[0.9, 0.9]]), reference)
