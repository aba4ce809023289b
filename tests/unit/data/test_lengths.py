"""How long the samples are: every sample in one bucket, bars that say how many, and a picture."""

import struct

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from tunesmith.data.lengths import LABELS, STARTS, bars, bucket, histogram, in_order, line, percentiles, readable
from tunesmith.data.picture import data_picture


@given(st.lists(st.integers(1, 3_000_000), max_size=50))
def test_every_sample_is_in_one_bucket(lengths):
    counts = histogram(np.asarray(lengths, np.int64))
    assert sum(counts.values()) == len(lengths) and 0 not in counts.values()
    for length in lengths:
        first, _, last = bucket(length).partition("-")
        assert int(first) <= length <= int(last or length)
        assert counts[bucket(length)] == sum(bucket(other) == bucket(length) for other in lengths)


def test_buckets_are_twenty_to_thirty_and_grow():
    assert 20 <= len(LABELS) <= 30 and list(STARTS) == sorted(set(STARTS))
    assert (LABELS[0], LABELS[-1]) == ("1-7", "1048576-")
    assert readable("1024-1535") == "1,024-1,535" and readable("1048576-") == "1,048,576 or more"


def test_percentiles_are_lengths_that_there_are():
    found = percentiles(np.arange(1, 101))
    assert found == {"50": 50, "90": 90, "99": 99, "longest": 100}
    assert line(found, 2).startswith("lengths of all a sample's sequences together: half")
    assert line(found, 1) == (
        "lengths: half of the samples have at most 50 tokens, 90% at most 90, 99% at most 99, the longest 100"
    )
    assert percentiles(np.asarray([7])) == {"50": 7, "90": 7, "99": 7, "longest": 7}
    assert percentiles(np.zeros(0, int)) == {}


def test_bars_are_as_long_as_they_say():
    counts = {"48-63": 800, "8-15": 400, "16-23": 1}
    assert in_order(counts) == [("8-15", 400), ("16-23", 1), ("24-31", 0), ("32-47", 0), ("48-63", 800)]
    assert bars(counts, width=10) == [
        (" 8-15", "█████", "400"),
        ("16-23", "▏", "1"),
        ("24-31", "", "0"),
        ("32-47", "", "0"),
        ("48-63", "██████████", "800"),
    ]
    assert [bar for _, bar, _ in bars(counts, width=10, blocks=False)] == ["#####", "#", "", "", "##########"]
    assert bars({}) == []


def account(*sources):
    return {
        "samples": 9,
        "longest_tokens": 70,
        "lengths": {"32-47": 4, "64-95": 5},
        "length_percentiles": {"50": 65, "90": 70, "99": 70, "longest": 70},
        "sources": {name: {"samples": 3, "tokens": 10 + n, "trained_tokens": n} for n, name in enumerate(sources)},
    }


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("sources", [1, 2, 12])
def test_the_picture_is_drawn_for_any_number_of_sources(sources):
    names = [f"folder/数据 $x{n}$_" + "long" * 12 for n in range(sources)]  # no font has all, and no name is a formula
    drawn = data_picture(account(*names))
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", drawn[16:24])
    assert width == 1800 and (height > 920) == (sources > 1)
    assert data_picture(account(*names)) == drawn


@pytest.mark.usefixtures("drawn")
def test_the_picture_shows_an_epoch_that_is_mixed():
    plain, mixed = account("a", "b"), account("a", "b")
    shares = {"a": {"samples": 1, "tokens": 1}, "b": {"samples": 9, "tokens": 99}}
    mixed |= {"samples_trained": 9, "epoch": {"samples": 10, "tokens": 100, "sources": shares}}
    assert data_picture(mixed) != data_picture(plain)
    del mixed["length_percentiles"]  # as in the account of a stream
    assert data_picture(mixed)
