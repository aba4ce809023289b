"""Log-probabilities of a frozen model beside the rows: kept, filled in where they lack, laid where they belong."""

import numpy as np
import pytest
from tests.unit.data.test_batch import store_of

from tunesmith.data.batch import join, lay
from tunesmith.data.reference import Referenced, missing, places
from tunesmith.data.taught import firsts_of


@pytest.fixture
def store(tmp_path):
    pair = [([1, 2, 3, 4], [0, 0, 1, 1]), ([1, 2, 5], [0, 0, 1])]
    return store_of(tmp_path, pair, [([7, 8], [0, 1])])


def test_numbers_follow_the_tokens_that_they_are_of(store):
    values = np.array([np.nan, np.nan, -3, -4, np.nan, np.nan, -5, np.nan, -8], np.float32)
    row = lay(Referenced(store, values), np.array([[0, 0, 7], [1, 0, 2]]))
    assert row["target"][row["weight"] != 0].tolist() == [3, 4, 5, 8]
    assert row["reference"][row["weight"] != 0].tolist() == [-3, -4, -5, -8]
    assert not np.isnan(row["reference"]).any()  # where nothing is asked there is 0
    assert join([row])["reference"].shape == (1, 9)


def test_a_place_is_that_of_the_token_that_is_asked_for(store):
    row = lay(places(store), np.array([[1, 0, 2], [0, 0, 7]]))
    asked = row["weight"] != 0
    assert row["reference"][asked].tolist() == [8, 2, 3, 6]


def test_only_what_lacks_is_made(store):
    values = np.full(9, np.nan, np.float32)
    assert missing(store, np.array([0, 1]), values).tolist() == [0, 1]
    values[8] = -1
    assert missing(store, np.array([0, 1]), values).tolist() == [0]
    values[[2, 3]] = -1
    assert missing(store, np.array([0, 1]), values).tolist() == [0]  # the second answer's
    values[6] = -1
    assert missing(store, np.array([0, 1]), values).tolist() == []


def test_the_learned_tokens_of_all_samples(store):
    """Of every sequence but its first, whatever its weight, which the number of a sample's learned ones leaves out."""
    assert store.learned().tolist() == [False, False, True, True, False, False, True, False, True]
    assert Referenced(store, np.zeros(9)).learned().tolist() == store.learned().tolist()


def test_a_first_token_is_never_learned(tmp_path):
    store = store_of(tmp_path, [([1, 2], [1, 1]), ([3, 4, 5], [1, 0, 0.5])])
    assert store.learned().tolist() == [False, True, False, False, True]
    assert firsts_of(store).tolist() == [0, 2] == [0, *np.cumsum(store.trained)]
