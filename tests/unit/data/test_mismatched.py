"""Prompts with the answers of other samples: drawn over the whole set, cut to the limit, the prompt laid once."""

import numpy as np
import pytest
from tests.unit.data.test_batch import store_of

from tunesmith.data.batch import lay
from tunesmith.data.mismatched import Mismatched, answer_begins

OWN = [([1, 2, 3, 10, 11], [0, 0, 0, 1, 1]), ([4, 5, 20], [0, 0, 1]), ([6, 30, 31, 32], [0, 1, 1, 0.5])]


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path, *[[one] for one in OWN])


def test_a_prompt_goes_on_with_the_answer_of_another(store):
    found = Mismatched(store, np.array([2, 0, 1]), 100, shares=True)
    own, other = found.branches(0)
    assert own.ids.tolist() == [1, 2, 3, 10, 11] and other.ids.tolist() == [1, 2, 3, 30, 31, 32]
    assert other.weight.tolist() == [0, 0, 0, 1, 1, 0.5]
    assert other.shared == 2  # the prompt's last token is asked for another word, and stands twice
    assert [two.ids.tolist() for _, two in map(found.branches, (1, 2))] == [[4, 5, 10, 11], [6, 20]]
    assert found.tokens().tolist() == [5 + 6, 3 + 4, 4 + 2]
    assert found.lengths().tolist() == [5 + 4, 3 + 3, 4 + 2]
    assert len(found) == 3 and found.label is store.label


def test_what_is_too_long_is_cut_and_what_is_not_shared_stands_twice(store):
    found = Mismatched(store, np.array([2, 0, 1]), 5, shares=False)
    (_, other) = found.branches(0)
    assert other.ids.tolist() == [1, 2, 3, 30, 31] and other.shared == 0
    assert found.lengths().tolist() == [10, 7, 6]


def random_samples(number, seed=0):
    """Samples of one sequence each, some with a weight on the first token, which nothing stands before."""
    draw = np.random.default_rng(seed)
    for _ in range(number):
        prompt, answer = draw.integers(1, 6, 2)
        weight = [float(draw.random() < 0.3), *[0] * (prompt - 1), 0.5, *draw.integers(0, 2, answer)]
        yield [(draw.integers(0, 3, len(weight)), weight)]


@pytest.mark.parametrize("limit", [3, 7, 100])
@pytest.mark.parametrize("shares", [True, False])
def test_sizes_and_what_is_learned_are_those_of_the_sequences(tmp_path, limit, shares):
    """Of few words, so that answers begin alike; with limits that cut answers, and prompts."""
    store = store_of(tmp_path, *random_samples(60))
    found = Mismatched.draw(store, np.arange(0, 60, 3), (1, 4), limit, shares)
    sequences = [found.branches(sample) for sample in range(60)]
    assert found.tokens().tolist() == [sum(map(len, both)) for both in sequences]
    assert found.lengths().tolist() == [sum(len(one) - one.shared for one in both) for both in sequences]
    weights = [np.where(np.arange(len(one)) > 0, one.weight, 0) for both in sequences for one in both]
    assert found.learned().tolist() == (np.concatenate(weights) != 0).tolist()


def test_a_row_holds_both_and_tells_them_apart(store):
    row = lay(Mismatched(store, np.array([2, 0, 1]), 100, shares=True), np.array([[0, 0, 9], [1, 0, 6]]))
    assert row["branch"].tolist() == [0, 1, 0, 1]
    assert row["input_ids"].tolist() == [1, 2, 3, 10, 11, 3, 30, 31, 32, 4, 5, 20, 5, 10, 11]
    assert row["prefix"].tolist() == [[0, 0], [0, 2], [0, 0], [2, 1]]


def test_partners_are_drawn_over_the_whole_set_by_the_seed_alone(tmp_path):
    store = store_of(tmp_path, *[[([1, 2 + n], [0, 1])] for n in range(50)])
    among = np.arange(0, 50, 2)
    one, again, other = (Mismatched.draw(store, among, seed, 100, True) for seed in ((1, 4), (1, 4), (2, 4)))
    partners = one.partner[among]
    assert sorted(partners) == among.tolist() and not (partners == among).any()
    assert (one.partner == again.partner).all() and (one.partner != other.partner).any()
    assert one.digest == again.digest != other.digest
    assert np.abs(partners - among).max() > 10  # far off, and not the neighbour of a batch


def test_where_an_answer_begins(store):
    assert [answer_begins(store.branches(n)[0]) for n in range(3)] == [3, 2, 1]
