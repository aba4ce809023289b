"""Memory of products is used again, and never while something lies in it."""

import pytest
import torch

from tunesmith.engine import pool
from tunesmith.engine.pool import Pool


def test_a_storage_is_used_again_when_nothing_lies_in_it():
    one = Pool()
    first = one.take(100, 50, torch.float32)
    place = first.data_ptr()
    view = first[10:].T
    del first
    assert one.take(100, 50, torch.float32).data_ptr() != place  # a view still lies there
    del view
    assert one.take(98, 50, torch.float32).data_ptr() == place  # a row that is a little shorter fits
    assert {len(kept) for kept in one.kept.values()} == {2}


def test_tensors_that_autograd_keeps_lie_in_it_too():
    one = Pool()
    first = one.take(64, 64, torch.float32).fill_(2).requires_grad_()
    loss, place = first.square().sum(), first.data_ptr()
    del first
    assert one.take(64, 64, torch.float32).data_ptr() != place
    loss.backward()
    del loss
    assert one.take(64, 64, torch.float32).data_ptr() == place


def test_what_nobody_uses_is_given_back():
    one = Pool()
    lasting = one.take(64, 64, torch.float32)
    one.take(128, 64, torch.float32)
    one.forget(1)
    assert sum(map(len, one.kept.values())) == 2  # used a moment ago
    for _ in range(3):
        one.take(256, 64, torch.float32)
    one.forget(3)
    assert sum(map(len, one.kept.values())) == len(one.used) == 2  # the second is gone
    one.forget()
    assert [lasting.untyped_storage().data_ptr()] == [storage.data_ptr() for storage in one.used]


@pytest.mark.parametrize("bias", [True, False])
def test_products(monkeypatch, bias):
    monkeypatch.setattr(pool, "POOL", Pool())
    monkeypatch.setattr(pool, "LEAST", 60)
    x, weight = torch.randn(10, 4), torch.randn(6, 4)
    shift = torch.randn(6) if bias else None
    first, second = (pool.multiply(times * x, weight.T, shift) for times in (1, 2))
    for times, found in ((1, first), (2, second)):
        torch.testing.assert_close(found, torch.nn.functional.linear(times * x, weight, shift))
    assert len(pool.POOL.used) == 2
    pool.multiply(x[:9], weight.T, shift)
    assert len(pool.POOL.used) == 2  # a small one is none of the pool's
