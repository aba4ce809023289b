"""Values in a file: found again, made anew where the file is not what was written, and never half there."""

import os

import numpy as np
import pytest

from tunesmith.data import kept, taught
from tunesmith.data.reference import NONE

SIZE = 25  # in blocks of 10


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(kept, "BLOCK", 10)


@pytest.fixture
def opened(tmp_path):
    def open_file(none=NONE):
        said = []
        return kept.open_file(tmp_path / "folder" / "key", none, SIZE, said.append), said

    return open_file


def filled(opened):
    found, _ = opened()
    found.values[:20] = range(20)
    found.flush()
    return found


def test_a_file_is_found_again(opened):
    found, said = opened()
    assert np.isnan(found.values).all() and len(found.values) == SIZE and not said
    filled(opened)
    again, said = opened()
    assert again.values[:20].tolist() == list(range(20)) and np.isnan(again.values[20:]).all() and not said


def test_a_file_of_another_size_is_made_anew(opened, tmp_path):
    filled(opened)
    path = tmp_path / "folder" / "key"
    path.write_bytes(path.read_bytes()[:-4])  # as a full disk leaves it
    assert np.isnan(opened()[0].values).all()


@pytest.mark.parametrize("byte", [4 * 12, 4 * 12 + 3, 4 * SIZE + kept.DIGEST_BYTES], ids=["low", "high", "digest"])
def test_a_flipped_byte_is_noticed_and_its_block_is_made_again(opened, tmp_path, byte):
    filled(opened)
    path = tmp_path / "folder" / "key"
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    found, said = opened()
    assert np.isnan(found.values).nonzero()[0].tolist() == [*range(10, 20), *range(20, 25)]
    assert found.values[:10].tolist() == list(range(10))
    assert said == [f"{path} is not what was written: 10 of its 25 values are made again"]
    assert opened()[1] == [] and os.listdir(path.parent) == ["key"]


def test_what_was_made_since_the_last_time_it_went_to_the_disk_is_made_again(opened):
    """Of the last block of some, as a program that is killed leaves it; and the program that fills it still has it."""
    found = filled(opened)
    found.values[20:] = 7
    again, said = opened()
    assert said[0].endswith("5 of its 25 values are made again")
    assert np.isnan(again.values[20:]).all() and again.values[:20].tolist() == list(range(20))
    assert found.values[20:].tolist() == [7] * 5


def test_records_of_a_teacher(opened):
    found, _ = opened(taught.none(3))
    assert np.isnan(found.values["logps"]).all() and not found.values["words"].any()
    found.values[4] = ([1, 2, 3], [-1, -2, -3, -4])
    found.flush()
    again, said = opened(taught.none(3))
    assert again.values.tobytes() == found.values.tobytes() and not said
    assert taught.missing(np.array([0, 4, 5, SIZE]), np.arange(3), again.values).tolist() == [0, 2]


def test_values_that_end_with_the_run():
    kept.Kept(np.full(3, NONE)).flush()
