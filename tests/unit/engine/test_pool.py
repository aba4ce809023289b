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
    other = one.take(128, 64, torch.float32)
    one.take(96, 64, torch.float32)
    del other
    one.forget(1)
    assert sum(map(len, one.kept.values())) == len(one.used) == 2  # the last was used a moment ago
    one.forget()
    assert [lasting.untyped_storage().data_ptr()] == [storage.data_ptr() for storage in one.used]


def test_rows_of_many_lengths_hold_little_more_than_the_longest():
    one, held = Pool(), []
    for tokens in (1000, 100, 850, 300, 990, 500, 120, 640, 1000, 350):
        row = [one.take(tokens, width, torch.float32) for width in (64, 64, 256, 256)]
        held.append(sum(storage.nbytes() for storage in one.used))
        del row
    assert max(held) < 1.3 * held[0]


def test_idle_storages_go_though_nothing_new_is_asked_for(monkeypatch):
    monkeypatch.setattr(pool, "IDLE", 8)
    one = Pool()
    row = [one.take(100, 64, torch.float32) for _ in range(5)]
    del row
    for _ in range(16):
        one.take(200, 64, torch.float32)
    assert len(one.used) == 1


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
