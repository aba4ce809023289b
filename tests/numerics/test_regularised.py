"""Label smoothing and z-loss equal torch's own on whole logits in float64, values and gradients."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from fixtures_models import tiny_lora, tiny_model
from numerics.packed import gradients, packed_batch
from tunesmith.engine import kernels
from tunesmith.objectives.pretrain import Pretrain
from tunesmith.objectives.seq2seq import Seq2Seq
from tunesmith.objectives.sft import SFT

LENGTHS = (7, 1, 12, 4)
CASES = {
    "tied": {},
    "lora": {"tied": False},
    "untied": {"tied": False},
    "capped": {"arch": "gemma2", "final_logit_softcapping": 3.0},
    "scaled": {"arch": "granite", "logits_scaling": 3.0},
    "biased": {"arch": "phi", "tied": False, "head_dim": None},
}
OPTIONS = [{"label_smoothing": 0.2}, {"z_loss": 0.03}, {"label_smoothing": 0.1, "z_loss": 0.01}]


def expected_loss(model, batch, label_smoothing=0.0, z_loss=0.0):
    """The same of each sequence's whole logits."""
    total, start = 0.0, 0
    for length in LENGTHS:
        part = slice(start, start + length)
        logits = model(input_ids=batch.input_ids[:, part], use_cache=False).logits[0]
        weight = batch.weight[0, part].double()
        losses = cross_entropy(logits, batch.target[0, part], label_smoothing=label_smoothing, reduction="none")
        total = total + (weight * (losses + z_loss * logits.logsumexp(-1).square())).sum()
        start += length
    return total


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
@pytest.mark.parametrize("case", [*CASES, "unfused"])
def test_equal_to_whole_logits(case, options, monkeypatch):
    changes = {name: value for name, value in CASES.get(case, {}).items() if value is not None}
    model = tiny_model(**changes)
    if case == "lora":
        model = tiny_lora(model, target_modules=["q_proj", "lm_head"])
    batch = packed_batch(LENGTHS, model.config.vocab_size)
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    scorer = kernels.choose(model).scorer
    assert scorer.fused
    scorer = replace(scorer, fused=case != "unfused", means=replace(scorer.means, logits=1 << 9))  # several blocks
    objective = SFT(**options)
    scores = scorer(model, batch, likelihood=objective.is_likelihood(), reads=objective.reads())
    found = objective.loss(scores, batch)
    expected = expected_loss(exact, batch, **options)
    torch.testing.assert_close(found.total.double(), expected, rtol=1e-5, atol=1e-5)
    plain = expected_loss(exact, batch)
    torch.testing.assert_close(found.metrics["nll"][0].double(), plain.detach(), rtol=1e-5, atol=1e-5)
    found.total.backward()
    expected.backward()
    theirs, ours = gradients(exact), gradients(model)
    assert theirs.keys() == ours.keys() and ours
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name].double(), gradient, rtol=1e-3, atol=2e-4, msg=name)


def test_what_is_off_is_not_asked_for():
    for kind in (SFT, Pretrain, Seq2Seq):
        assert kind().reads() == () and kind().is_likelihood()
        assert kind(label_smoothing=0.1).reads() == ("lead",) and kind(label_smoothing=0.1).is_likelihood()
        assert kind(z_loss=1e-4).reads() == ("normaliser",) and not kind(z_loss=1e-4).is_likelihood()


def test_half_precision_sums_gradients_of_a_trained_head_in_float32():
    model = tiny_model(tied=False).to(torch.bfloat16)
    batch = packed_batch((60, 60, 60), model.config.vocab_size)
    objective = SFT(label_smoothing=0.2)
    found = objective.loss(kernels.choose(model).scorer(model, batch, reads=objective.reads()), batch)
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    logits = torch.cat([exact(input_ids=one, use_cache=False).logits[0] for one in batch.input_ids.split(60, dim=1)])
    losses = cross_entropy(logits, batch.target[0], label_smoothing=0.2, reduction="none")
    (losses * batch.weight[0]).sum().backward()
    found.total.backward()
    theirs, ours = exact.lm_head.weight.grad, model.lm_head.weight.grad
    assert (ours - theirs).norm() < 0.03 * theirs.norm()
