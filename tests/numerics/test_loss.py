"""Our losses equal transformers' own on the same tokens."""

import pytest
import torch

from fixtures_models import tiny_model
from numerics.packed import packed_batch
from tunesmith.engine import kernels
from tunesmith.objectives.pretrain import Pretrain
from tunesmith.objectives.sft import SFT


@pytest.mark.parametrize("seed", range(5))
def test_sft_equals_transformers(seed):
    model = tiny_model()
    batch = packed_batch((24,), model.config.vocab_size, seed=seed, asked=0.4)
    batch = type(batch)(
        **{name: getattr(batch, name) for name in batch.__slots__} | {"weight": batch.weight.ne(0).float()}
    )
    labels = torch.full_like(batch.input_ids, -100)
    asked = batch.weight[0].nonzero()[:, 0]
    labels[0, asked + 1] = batch.target[0, asked]
    theirs = model(input_ids=batch.input_ids, labels=labels).loss
    chosen = kernels.choose(model)
    summed = SFT().loss(chosen.scorer(model, batch), batch).total
    torch.testing.assert_close(summed / SFT().count(batch), theirs, rtol=1e-6, atol=1e-6)


def test_pretrain_equals_transformers_on_every_token():
    model = tiny_model()
    batch = packed_batch((24,), model.config.vocab_size, asked=1.1)
    batch.weight[batch.weight != 0] = 1.0
    theirs = model(input_ids=batch.input_ids, labels=batch.input_ids).loss
    chosen = kernels.choose(model)
    summed = Pretrain().loss(chosen.scorer(model, batch), batch).total
    assert Pretrain().count(batch) == 23
    torch.testing.assert_close(summed / 23, theirs, rtol=1e-6, atol=1e-6)


def test_weights_scale_tokens_and_are_counted():
    model = tiny_model()
    chosen = kernels.choose(model)
    batch = packed_batch((9, 6), model.config.vocab_size)
    scores = chosen.scorer(model, batch)
    by_hand = -sum(w * lp for w, lp in zip(batch.weight[0].tolist(), scores.logps[0].tolist(), strict=True))
    assert SFT().loss(scores, batch).total.item() == pytest.approx(by_hand, rel=1e-5)
    assert SFT().count(batch).item() == pytest.approx(sum(batch.weight[0].tolist()), rel=1e-6)
