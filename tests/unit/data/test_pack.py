"""Rows hold every sample once, whole, and are nearly full; their order is the seed's alone."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import example, given

from tunesmith.data import pack
from tunesmith.data.pack import _side_by_side, first_fit_decreasing, plan_documents, plan_epoch

lengths = st.lists(st.integers(1, 50), max_size=60).map(lambda some: np.asarray(some, np.int64))


def naive(lengths, capacity):
    """First-fit decreasing as it is told: each item, longest first, into the first row with room."""
    rows = []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        for row in rows:
            if sum(lengths[other] for other in row) + lengths[item] <= capacity:
                row.append(item)
                break
        else:
            rows.append([item])
    return [sorted(row) for row in rows]


def realistic(number=8000, seed=0):
    """Lengths as chats have them: many short, few long, none beyond 4096."""
    drawn = np.random.default_rng(seed).lognormal(5.5, 1.0, number)
    return np.clip(drawn, 8, 4096).astype(np.int64)


def epoch(lengths, row_tokens=64, window=16, seed=0):
    order = np.arange(len(lengths))
    return plan_epoch(lengths, row_tokens, window, order, None if seed is None else (seed,))


def members_of(row_of):
    """The items of each row, from the row of each item."""
    return [np.flatnonzero(row_of == row).tolist() for row in range(int(row_of.max(initial=-1)) + 1)]


def members(plan):
    return [plan.row(number)[:, 0].tolist() for number in range(len(plan))]


@given(lengths, st.integers(50, 120))
@example(np.asarray([50, 50, 50]), 50)
@example(np.asarray([7] * 16), 50)
def test_it_is_first_fit_decreasing(lengths, capacity):
    assert members_of(first_fit_decreasing(lengths, capacity)) == naive(lengths.tolist(), capacity)


@given(lengths.filter(len), st.integers(50, 120), st.integers(1, 9))
@example(np.full(60, 26), 50, 30)  # rows that are half empty, as many as there can be
def test_windows_side_by_side_are_windows_one_after_the_other(lengths, capacity, window):
    found = list(_side_by_side(lengths, capacity, window))
    alone = [first_fit_decreasing(lengths[at : at + window], capacity) for at in range(0, len(lengths), window)]
    assert [row_of.tolist() for row_of in found] == [row_of.tolist() for row_of in alone]


def test_many_windows_and_few_give_the_same_rows(monkeypatch):
    lengths, order = realistic(3000), np.random.default_rng(2).permutation(3000)

    def planned():
        return [plan_epoch(lengths, 4096, 64, order, seed).pieces.tolist() for seed in (None, (1, 2))]

    together = planned()
    monkeypatch.setattr(pack, "MOST_WINDOWS", 7)
    assert planned() == together
    monkeypatch.setattr(pack, "FEW_WINDOWS", 10_000)
    assert planned() == together


def test_a_sample_may_come_several_times():
    lengths = np.asarray([30, 10, 40])
    rows = members(plan_epoch(lengths, 64, 16, np.asarray([0, 1, 0, 2, 1, 0]), (1,)))
    assert sorted(sample for row in rows for sample in row) == [0, 0, 0, 1, 1, 2]
    assert max(int(lengths[row].sum()) for row in rows) <= 64
    plan = plan_documents(lengths, 32, np.asarray([1, 0, 1]))
    assert plan.pieces.tolist() == [[1, 0, 10], [0, 0, 22], [0, 22, 30], [1, 0, 10]]
    assert plan.row_offsets.tolist() == [0, 2, 4]


@given(lengths.filter(len), st.integers(50, 120), st.integers(1, 70), st.sampled_from([None, 0, 7]))
def test_every_sample_is_in_one_row_and_whole(lengths, row_tokens, window, seed):
    plan = epoch(lengths, row_tokens, window, seed)
    assert sorted(plan.pieces[:, 0]) == list(range(len(lengths)))
    assert (plan.pieces[:, 1] == 0).all()
    assert (plan.pieces[:, 2] == lengths[plan.pieces[:, 0]]).all()
    sums = [int(lengths[row].sum()) for row in members(plan)]
    assert 0 < min(sums) and max(sums) <= row_tokens
    assert np.isclose(plan.fill(row_tokens), sum(sums) / (row_tokens * len(sums)))


def test_rows_are_nearly_full():
    lengths = realistic()
    order = np.random.default_rng(1).permutation(len(lengths))
    assert plan_epoch(lengths, 4096, 4096, order, seed=(0,)).fill(4096) >= 0.97


def test_a_window_is_packed_by_itself():
    plan = epoch(np.asarray([30] * 40), row_tokens=64, window=10)
    assert len(plan) == 4 * 5
    for number, row in enumerate(members(plan)):
        assert {sample // 10 for sample in row} == {number // 5}


def test_the_seed_decides_the_order_and_nothing_else_does():
    lengths = realistic(200)
    assert members(epoch(lengths, 4096, 64, seed=3)) == members(epoch(lengths, 4096, 64, seed=3))
    other = epoch(lengths, 4096, 64, seed=4)
    assert members(epoch(lengths, 4096, 64, seed=3)) != members(other)
    assert sorted(members(epoch(lengths, 4096, 64, seed=3))) == sorted(members(other))


def test_long_samples_do_not_come_first():
    lengths = realistic(4000)
    rows = members(epoch(lengths, 4096, 4096, seed=0))
    longest = [int(lengths[row].max()) for row in rows]
    half = len(rows) // 2
    assert 0.8 < np.mean(longest[:half]) / np.mean(longest[half:]) < 1.25
    decreasing = [int(lengths[row].max()) for row in members_of(first_fit_decreasing(lengths, 4096))]
    assert np.mean(decreasing[:half]) > 2 * np.mean(decreasing[half:])  # what shuffling the rows mends


def test_without_a_seed_rows_stand_in_the_order_of_their_first_samples():
    rows = members(epoch(np.asarray([10, 60, 20, 50, 5, 5]), row_tokens=64, window=6, seed=None))
    assert rows == [[0, 3], [1], [2, 4, 5]]
    single = members(epoch(np.full(30, 40), row_tokens=64, window=4, seed=None))
    assert single == [[number] for number in range(30)]


@given(lengths.filter(len).map(lambda some: some + 1), st.integers(2, 80))
@example(np.asarray([6, 3]), 2)
def test_documents_fill_every_row_but_the_last(lengths, row_tokens):
    order = np.random.default_rng(0).permutation(len(lengths))
    plan = plan_documents(lengths, row_tokens, order)
    sums = [int((plan.row(n)[:, 2] - plan.row(n)[:, 1]).sum()) for n in range(len(plan))]
    assert set(sums[:-1]) <= {row_tokens} and 0 < sums[-1] <= row_tokens
    laid = [(sample, token) for sample, first, last in plan.pieces.tolist() for token in range(first, last)]
    whole = [(sample, token) for sample in order for token in range(lengths[sample])]
    alone = len(whole) % row_tokens == 1  # the last document's end would stand in a row of its own, and ask nothing
    assert laid == (whole[:-1] if alone else whole)


def test_the_first_rows_of_a_plan():
    plan = epoch(np.asarray([30] * 10))
    assert members(plan.first(2)) == members(plan)[:2] and len(plan.first(0)) == 0
