"""Values of packed sequences equal what transformers says of each alone: values, gradients, shared beginnings, fill."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fixtures_values import ENCODERS, tiny_values
from numerics.packed import gradients, packed_batch
from tunesmith.adapters.lora import LoRA
from tunesmith.engine import attention, kernels
from tunesmith.engine.values import groups

LENGTHS = (7, 1, 12, 4)
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2")


def alone(model, batch):
    """[S, labels], each sequence through the model as transformers has it."""
    bounds = pairwise(batch.offsets.tolist())
    return torch.cat([model(input_ids=batch.input_ids[:, first:last]).logits for first, last in bounds])


def compare(model, chosen, batch):
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    weight = torch.randn(len(batch.label), model.config.num_labels, generator=torch.Generator().manual_seed(3))
    expected = alone(exact, batch)
    found = chosen.scorer(model, batch).values
    assert found.dtype == torch.float32 and found.std() > 0.05
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    theirs, ours = gradients(exact), gradients(model)
    assert theirs.keys() == ours.keys() and ours
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name].double(), gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("arch", DECODERS)
def test_a_packed_row_equals_each_sequence_alone(arch):
    model = tiny_values(arch)
    chosen = kernels.choose(model)
    assert chosen.scorer.packed and chosen.shares and not chosen.notes
    compare(model, chosen, packed_batch(LENGTHS, model.config.vocab_size))


@pytest.mark.parametrize("arch", ENCODERS)
def test_an_encoder_is_given_batches_that_are_filled_up(arch):
    model = tiny_values(arch)
    chosen = kernels.choose(model)
    assert not chosen.scorer.packed and not chosen.shares
    assert "filled up to batches" in chosen.notes[0]
    compare(model, chosen, packed_batch(LENGTHS, model.config.vocab_size))


def test_sequences_that_share_a_beginning_say_what_whole_ones_do():
    model = tiny_values()
    scorer = kernels.choose(model).scorer
    batch = packed_batch((9, 4, 5), model.config.vocab_size)
    positions = torch.cat([torch.arange(9), torch.arange(6, 10), torch.arange(8, 13)])[None]
    shared = replace(batch, prefix=torch.tensor([[0, 0], [0, 6], [1, 8]]), position_ids=positions)
    ids = batch.input_ids[0]
    wholes = [ids[:9], torch.cat([ids[:6], ids[9:13]]), torch.cat([ids[:6], ids[9:11], ids[13:]])]
    model.set_attn_implementation("eager")
    expected = torch.cat([model(input_ids=one[None]).logits for one in wholes])
    model.set_attn_implementation(attention.NAME)
    torch.testing.assert_close(scorer(model, shared).values, expected, rtol=1e-5, atol=2e-5)


def test_padding_at_an_end_is_passed_over_as_transformers_does():
    model = tiny_values(pad_token_id=5)
    scorer = kernels.choose(model).scorer
    batch = packed_batch((6, 4, 3), model.config.vocab_size)
    ids = batch.input_ids.clone()
    ids[0, [4, 5, 9]] = 5
    batch = replace(batch, input_ids=ids)
    found = scorer(model, batch).values
    model.set_attn_implementation("eager")
    torch.testing.assert_close(found, alone(model, batch), rtol=1e-5, atol=2e-5)


def test_rows_that_leak_are_not_packed(monkeypatch):
    def leak(query, key, value, sequences, reach, ops):
        whole = ((slice(0, query.shape[2]),),)
        return own(query, key, value, whole, reach, ops)

    own = attention.attention
    monkeypatch.setattr(attention, "attention", leak)
    model = tiny_values()
    chosen = kernels.choose(model)
    assert not chosen.scorer.packed
    assert "values differ by" in chosen.notes[0]
    batch = packed_batch(LENGTHS, model.config.vocab_size)
    torch.testing.assert_close(chosen.scorer(model, batch).values, alone(model, batch), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("arch", "whole", "adapted"),
    [
        ("llama", {"score"}, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("distilbert", {"pre_classifier", "classifier"}, {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"}),
        ("bert", {"pooler", "classifier"}, {"query", "key", "value", "dense"}),
        ("roberta", {"classifier"}, {"query", "key", "value", "dense"}),
    ],
)
def test_lora_adapts_the_body_and_trains_the_head_whole(arch, whole, adapted):
    model = LoRA(r=2).apply(tiny_values(arch))
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    heads = {name.partition(".modules_to_save")[0].rpartition(".")[2] for name in trained if "lora" not in name}
    layers = {name.partition(".lora_")[0] for name in trained if "lora" in name}
    assert heads == whole
    assert {name.rpartition(".")[2] for name in layers} == adapted
    assert not any(part in name.split(".") for name in layers for part in whole)


def test_groups_hold_lengths_between_two_powers_of_two():
    assert list(groups((3, 4, 1, 9, 5, 2, 16))) == [[2], [5], [0, 1], [4], [3, 6]]
