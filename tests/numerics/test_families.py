"""Families of models on rows longer than their windows: the numbers of each sequence alone, or a note, or a refusal."""

import pytest
import torch

from fixtures_models import tiny_model
from numerics.packed import alone, packed_batch
from tunesmith.engine import kernels
from tunesmith.errors import ModelError

WINDOW = {"sliding_window": 6}
MIXED = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
PACKED = {
    "gpt2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": {},
    "phi": {},
    "phi3": WINDOW,
    "mistral": WINDOW,
    "mixtral": EXPERTS | WINDOW,
    "qwen2_moe": EXPERTS,
    "qwen3": MIXED | {"use_sliding_window": True},
    "qwen3_moe": EXPERTS,
    "gemma2": MIXED | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.5},
    "gemma3_text": MIXED | {"query_pre_attn_scalar": 8},
    "cohere2": MIXED,
    "starcoder2": WINDOW,
}
NOT_PACKED = {  # and a part of the note that says why
    "phimoe": (EXPERTS | WINDOW, "its attention is not told of"),
    "llama4_text": (EXPERTS | {"attention_chunk_size": 6, "intermediate_size_mlp": 64}, "its attention is not told of"),
    "nemotron": ({}, "does not tell its attention where sequences lie"),
}


@pytest.mark.parametrize("shift", [0, 40])  # windows inside and beyond the tokens of the trial
@pytest.mark.parametrize("arch", [*PACKED, *NOT_PACKED])
def test_each_sequence_is_scored_as_if_alone(arch, shift):
    options, note = NOT_PACKED.get(arch, (PACKED.get(arch), None))
    sizes = {name: options[name] + shift for name in ("sliding_window", "attention_chunk_size") if name in options}
    model = tiny_model(arch=arch, **(options | sizes))
    batch = packed_batch((9, 1, 70, 4), model.config.vocab_size)
    expected = alone(model, batch)
    chosen = kernels.choose(model)
    assert chosen.scorer.packed == (note is None), chosen.notes
    assert note is None or any(note in one for one in chosen.notes), chosen.notes
    torch.testing.assert_close(chosen.scorer(model, batch).logps, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_that_is_told_another_window_than_its_masks_is_seen():
    model = tiny_model(arch="qwen3", use_sliding_window=True, **(MIXED | {"sliding_window": 60}))
    model.model.layers[0].self_attn.sliding_window = 59
    chosen = kernels.choose(model)
    assert not chosen.scorer.packed
    assert "its attention is not told of" in chosen.notes[0]


@pytest.mark.parametrize("arch", ["bloom", "mamba"])
def test_a_model_that_cannot_keep_sequences_apart_is_refused(arch):
    options = {"num_key_value_heads": 4, "head_dim": 8} if arch == "bloom" else {"state_size": 4}
    with pytest.raises(ModelError, match="cannot be trained on packed rows: log-probabilities differ"):
        kernels.choose(tiny_model(arch=arch, **options))
