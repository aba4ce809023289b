"""Entities by their tags: counted by hand, and as a plain loop over random tags counts them."""

import random

import pytest
import torch

from tunesmith.objectives import _entities

NAMES = ("O", "B-X", "I-X", "B-Y", "I-Y")


def counted(found, label, sequence=None):
    sequence = [0] * len(label) if sequence is None else sequence
    return _entities.counts(*map(torch.tensor, (found, label, sequence)), NAMES).tolist()


def test_tags_have_kinds_and_other_classes_none():
    assert _entities.kinds(NAMES) == ["X", "Y"] and _entities.kinds(("I-X", "O")) == ["X"]
    for names in ((), ("O",), ("LABEL_0", "LABEL_1"), ("O", "S-X"), ("NOUN", "VERB"), ("O", "B-")):
        assert _entities.kinds(names) == []


@pytest.mark.parametrize(
    ("found", "label", "expected"),
    [
        ([1, 2, 0, 3], [1, 2, 0, 3], [[1, 1, 1], [1, 1, 1]]),
        ([1, 0, 0, 3], [1, 2, 0, 3], [[0, 1, 1], [1, 1, 1]]),  # too short
        ([1, 2, 2, 0], [1, 2, 0, 0], [[0, 1, 1], [0, 0, 0]]),  # too long
        ([2, 2, 0, 0], [1, 2, 0, 0], [[1, 1, 1], [0, 0, 0]]),  # an I- begins one too
        ([1, 1, 0, 0], [1, 2, 0, 0], [[0, 2, 1], [0, 0, 0]]),  # two of them
        ([1, 4, 0, 0], [1, 2, 0, 0], [[0, 1, 1], [0, 1, 0]]),  # another kind begins
        ([3, 4, 0, 0], [1, 2, 0, 0], [[0, 0, 1], [0, 1, 0]]),  # the right ends of the wrong kind
    ],
)
def test_entities_by_hand(found, label, expected):
    assert counted(found, label) == expected


def test_an_entity_ends_with_its_text():
    assert counted([1, 2], [1, 2], [0, 1]) == [[2, 2, 2], [0, 0, 0]]
    assert counted([1, 2], [1, 2], [0, 0]) == [[1, 1, 1], [0, 0, 0]]


def entities(tags, sequence):
    """(kind, first, behind the last) of each entity, by a loop."""
    found, open_ = set(), None
    for place, tag in enumerate([*tags, 0]):
        mark, _, kind = NAMES[tag].partition("-")
        ends = place == len(tags) or (place and sequence[place] != sequence[place - 1])
        if open_ and (ends or mark != "I" or kind != open_[0]):
            found.add((*open_, place))
            open_ = None
        if mark != "O" and open_ is None:
            open_ = (kind, place)
    return found


def test_random_tags_are_counted_as_a_loop_counts_them():
    chance = random.Random(0)
    for _ in range(200):
        length = chance.randint(1, 12)
        found, label = ([chance.randrange(5) for _ in range(length)] for _ in range(2))
        label = [tag if chance.random() < 0.4 else other for tag, other in zip(label, found, strict=True)]
        sequence = sorted(chance.randrange(3) for _ in range(length))
        said, there = entities(found, sequence), entities(label, sequence)
        sets = (said & there, said, there)
        assert counted(found, label, sequence) == [[sum(e[0] == kind for e in one) for one in sets] for kind in "XY"]


def test_the_numbers_of_all_entities_together_by_hand():
    found = _entities.measures(torch.tensor([[1, 2, 1], [1, 1, 3]]))
    assert found == pytest.approx({"entity_precision": 2 / 3, "entity_recall": 2 / 4, "entity_f1": 4 / 7})
