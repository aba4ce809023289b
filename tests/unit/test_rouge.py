"""ROUGE-L against values worked out by hand, and the bits against the table that they stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.rouge import Pool, common, rouge_l, words


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [
        ("police killed the gunman", "police kill the gunman", 3),  # police the gunman
        ("police killed the gunman", "the gunman kill police", 2),  # the gunman
        ("a b c d e f", "b d f", 3),
        ("a b a b", "b a b a", 3),
        ("a a a", "a a", 2),
        ("x", "y", 0),
    ],
)
def test_the_common_subsequence_is_the_one_found_by_hand(one, other, length):
    one, other = one.split(), other.split()
    assert common(one, other) == common(other, one) == length
    assert rouge_l(one, other) == pytest.approx(2 * length / (len(one) + len(other)))


@given(st.lists(st.sampled_from("abcd"), max_size=70), st.lists(st.sampled_from("abcd"), max_size=70))
def test_the_bits_count_as_the_table_does(one, other):
    row = [0] * (len(other) + 1)
    for left in one:
        above = row
        row = [0]
        for at, right in enumerate(other):
            row.append(above[at] + 1 if left == right else max(above[at + 1], row[at]))
    assert common(one, other) == row[-1]


def test_words_are_those_of_the_script():
    assert words("Translate: 'Don't STOP', café!") == ["translate", "don", "t", "stop", "café"]
    assert words("翻译 GPT模型") == ["翻", "译", "gpt", "模", "型"]
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]  # vowel signs belong to their letters
    assert words("한국어 문장") == ["한국어", "문장"]
    assert words("cafe\u0301") == words("café") and words("ＡＢＣ") == ["abc"] and words("-- ... _") == []


def test_nothing_is_like_an_empty_text():
    assert rouge_l([], ["a"]) == rouge_l(["a"], []) == 0.0
    assert Pool(["a b"]).nearest("...") == (0.0, "") == Pool().nearest("a b")


def test_the_nearest_is_the_first_of_the_most_alike():
    pool = Pool(["sort the list", "sort a list", "name the list"])
    assert pool.nearest("sort this list") == (pytest.approx(4 / 6), "sort the list")
    assert pool.nearest("name list") == (pytest.approx(4 / 5), "name the list")
    pool.add("Name, list!")
    assert pool.nearest("name list") == (1.0, "Name, list!")
