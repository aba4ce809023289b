"""Processes get micro-batches of equal work, and each step keeps its own."""

import numpy as np
import pytest

from tunesmith.data.balance import order, work
from tunesmith.data.pack import Plan


def shares(each, found, ranks, batch, accumulation):
    """The work of each process in each step, and that of each in each round: [steps, ranks], [rounds, ranks]."""
    rounds = each[found].reshape(-1, ranks, batch).sum(axis=2)
    steps = [rounds[start : start + accumulation].sum(axis=0) for start in range(0, len(rounds), accumulation)]
    return np.stack(steps), rounds


def test_the_work_of_a_row_by_hand():
    pieces = np.asarray([[0, 0, 3], [1, 0, 1], [2, 2, 6]], np.int32)
    assert work(Plan(pieces, np.asarray([0, 2, 3]))).tolist() == [9 + 3 + 1 + 1, 16 + 4]


@pytest.mark.parametrize(("ranks", "batch", "accumulation"), [(2, 1, 6), (4, 1, 3), (2, 3, 2), (3, 2, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_each_step_keeps_its_rows_and_shares_them_evenly(ranks, batch, accumulation, seed):
    """The last step has fewer rounds. No process has more than another by more than its largest micro-batch."""
    rounds = 4 * accumulation + 1
    each = np.random.default_rng(seed).lognormal(sigma=1.5, size=rounds * ranks * batch)
    found = order(each, ranks, batch, accumulation)
    per_step = ranks * batch * accumulation
    for start in range(0, len(each), per_step):
        assert sorted(found[start : start + per_step]) == list(range(start, min(start + per_step, len(each))))
    taken, _ = shares(each, found, ranks, batch, accumulation)
    for step, start in zip(taken, range(0, len(each), per_step), strict=True):
        assert np.ptp(step) <= each[start : start + per_step].reshape(-1, batch).sum(axis=1).max() + 1e-9


def test_processes_wait_less_than_in_the_order_of_rows():
    """What a step takes is the most that a process has in each round where weights lie in parts, else in all."""
    each = np.random.default_rng(0).lognormal(sigma=0.7, size=4 * 4 * 100)
    taken, plain = (shares(each, found, 4, 1, 4) for found in (order(each, 4, 1, 4), np.arange(len(each))))
    waits = [[one.max(axis=1).sum() / each.sum() * 4 - 1 for one in found] for found in (taken, plain)]
    assert all(ours < theirs / 2 for ours, theirs in zip(*waits, strict=True)), waits


def test_a_round_has_what_is_alike_and_the_rest_is_evened_out():
    """By hand: 9 and 8 go together, then 5 and 1, of which the one with 8 gets the 5."""
    each = np.asarray([1.0, 9.0, 5.0, 8.0])
    found = order(each, ranks=2, batch=1, accumulation=2)
    assert found.tolist() == [1, 3, 0, 2]
    taken, rounds = shares(each, found, 2, 1, 2)
    assert taken.tolist() == [[10.0, 13.0]] and rounds.tolist() == [[9.0, 8.0], [1.0, 5.0]]
