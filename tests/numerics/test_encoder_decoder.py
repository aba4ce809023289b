"""Log-probabilities of answers equal transformers' own loss on each sample alone, values and gradients."""

import copy
from dataclasses import replace

import pytest
import torch

from fixtures_models import SEQ2SEQ, tiny_lora, tiny_seq2seq
from numerics.packed import gradients
from tunesmith.engine import encoder_decoder
from tunesmith.engine.encoder_decoder import batch_of
from tunesmith.errors import ModelError

SAMPLES = ((9, 4), (3, 11), (14, 2), (3, 5))  # tokens of prompts and answers, the start token not counted
TASK = {"task_type": "SEQ_2_SEQ_LM"}


def samples(model, sizes=SAMPLES, seed=3):
    """Random prompts and answers, each answer behind the start token."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    found = []
    for prompt, answer in sizes:
        ids = torch.randint(5, config.vocab_size, (prompt + answer,), generator=generator).tolist()
        found += [ids[:prompt], [config.decoder_start_token_id, *ids[prompt:]]]
    return found


def expected(model, sequences):
    """transformers' loss of each sample alone times its words: the summed negative log-likelihood."""
    total = 0
    for prompt, answer in zip(sequences[0::2], sequences[1::2], strict=True):
        given, labels = torch.tensor([prompt]), torch.tensor([answer[1:]])
        total = (
            total
            + len(answer[1:])
            * model(input_ids=given, decoder_input_ids=torch.tensor([answer[:-1]]), labels=labels, use_cache=False).loss
        )
    return total


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("arch", SEQ2SEQ)
def test_equal_to_the_loss_of_transformers(arch, adapted):
    model = tiny_seq2seq(arch)
    sequences = samples(model)
    model = tiny_lora(model, **TASK) if adapted else model
    exact = copy.deepcopy(model).double()
    theirs = expected(exact, sequences)
    theirs.backward()
    chosen = encoder_decoder.choose(model)
    assert chosen.scorer.fused and not chosen.notes
    batch = batch_of(sequences)
    ours = -(chosen.scorer(model, batch).logps * batch.weight).sum()
    ours.backward()
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    found, wanted = gradients(model), gradients(exact)
    assert wanted and found.keys() == {name for name, one in wanted.items()}
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name].double(), gradient, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("arch", ["t5", "bart"])
def test_a_sample_scores_the_same_in_any_company(arch):
    model = tiny_seq2seq(arch)
    scorer = encoder_decoder.choose(model).scorer
    sequences = samples(model)
    together = scorer(model, batch_of(sequences)).logps
    alone = [scorer(model, batch_of(sequences[at : at + 2])).logps for at in range(0, len(sequences), 2)]
    turned = scorer(model, batch_of(sequences[4:] + sequences[:4])).logps
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-5, atol=2e-5)
    first = sum(map(len, sequences[:4]))
    torch.testing.assert_close(
        together, torch.cat([turned[:, -first:], turned[:, :-first]], dim=1), rtol=1e-5, atol=2e-5
    )


def test_a_tied_head_of_t5_is_scaled_and_the_newer_one_is_not():
    old, new = tiny_seq2seq(), tiny_seq2seq(tie_word_embeddings=False)
    assert old.config.scale_decoder_outputs and not new.config.scale_decoder_outputs
    for model in (old, new):
        sequences = samples(model)
        batch = batch_of(sequences)
        chosen = encoder_decoder.choose(model)
        assert chosen.scorer.fused
        found = -chosen.scorer(model, batch).logps.sum()
        torch.testing.assert_close(found, expected(model, sequences), rtol=1e-5, atol=1e-4)


def test_a_bias_behind_the_head_puts_the_fused_head_off():
    model = tiny_seq2seq("bart")
    model.final_logits_bias += torch.linspace(-2, 2, model.config.vocab_size)
    chosen = encoder_decoder.choose(model)
    assert not chosen.scorer.fused and "log-probabilities differ" in chosen.notes[0]
    sequences = samples(model)
    found = -chosen.scorer(model, batch_of(sequences)).logps.sum()
    torch.testing.assert_close(found, expected(model, sequences), rtol=1e-5, atol=1e-4)


def test_entropy_and_a_known_loss_change_no_log_probability():
    model = tiny_seq2seq()
    scorer = encoder_decoder.choose(model).scorer
    batch = batch_of(samples(model))
    plain = scorer(model, batch).logps
    for fused in (True, False):
        found = replace(scorer, fused=fused)(model, batch, reads=("entropy",))
        torch.testing.assert_close(found.logps, plain, rtol=1e-5, atol=2e-5)
        assert (found.entropy[batch.weight != 0] > 0).all() and not found.entropy[batch.weight == 0].any()
    torch.testing.assert_close(scorer(model, batch, likelihood=True).logps, plain, rtol=1e-5, atol=2e-5)


def test_a_model_whose_answers_see_padding_is_refused(monkeypatch):
    model = tiny_seq2seq()
    padded = encoder_decoder.padded
    monkeypatch.setattr(
        encoder_decoder, "padded", lambda batch: {k: v for k, v in padded(batch).items() if k != "attention_mask"}
    )
    with pytest.raises(ModelError, match="T5ForConditionalGeneration cannot be trained on padded samples"):
        encoder_decoder.choose(model)


@pytest.mark.parametrize("arch", ["t5", "bart"])
def test_checkpointed_activations_change_gradients_by_rounding_alone(arch):
    model = tiny_seq2seq(arch)
    scorer = encoder_decoder.choose(model).scorer
    model.train()
    batch = batch_of(samples(model))
    scorer(model, batch).logps.sum().backward()
    plain = gradients(model)
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": False})
    scorer(model, batch).logps.sum().backward()
    torch.testing.assert_close(gradients(model), plain, rtol=1e-5, atol=1e-5)  # T5's bias sums over layers


@pytest.mark.parametrize("arch", ["t5", "bart"])
def test_half_precision_is_scored_as_the_model_scores_it(arch):
    model = tiny_seq2seq(arch)
    sequences = samples(model)
    wanted = expected(model, sequences)
    model = model.bfloat16()
    chosen = encoder_decoder.choose(model)
    assert chosen.scorer.fused, chosen.notes
    found = -chosen.scorer(model, batch_of(sequences)).logps.sum()
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0)
