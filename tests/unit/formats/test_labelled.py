"""Labelled rows: one answer, good or bad, which alone is learned."""

import json

import pytest

from tunesmith.data.ledger import Ledger
from tunesmith.data.render import rendered
from tunesmith.engine.model import load_tokenizer
from tunesmith.errors import DataError, Skipped
from tunesmith.formats.labelled import Labelled
from tunesmith.recipe import Model, Recipe

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": [Q], "completion": [A]},
        {"messages": [Q, A]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "input": "", "output": "a"},
        {"question": "q", "response": "a"},
    ],
    ids=" ".join,
)
def test_a_conversation_in_every_shape(row):
    sample = Labelled().read(row | {"label": True})
    assert [[(turn.role, turn.content, turn.weight) for turn in branch] for branch in sample.branches] == [
        [("user", "q", 0), ("assistant", "a", 1)]
    ]
    assert sample.label == 1.0 and Labelled.fits(row | {"label": True})


@pytest.mark.parametrize(
    ("label", "number"),
    [(True, 1.0), (False, 0.0), (1, 1.0), (0, 0.0), ("true", 1.0), ("False", 0.0), ("1", 1.0), (" 0", 0.0)],
)
def test_ways_to_say_a_label(label, number):
    assert Labelled().read({"messages": [Q, A], "label": label}).label == number


@pytest.mark.parametrize("label", [None, 2, "good", 1.0, [True], {}])
def test_a_label_that_is_none_is_refused(label):
    with pytest.raises(DataError, match="column 'label' must be true or false and is") as caught:
        Labelled().read({"messages": [Q, A], "label": label})
    assert caught.value.reason.startswith("column 'label' must be true or false and is")


def test_the_last_answer_alone_is_learned():
    sample = Labelled().read({"messages": [Q, A, Q, A], "label": False})
    assert [turn.weight for turn in sample.branches[0]] == [0, 0, 0, 1]


def test_good_rows_alone_are_ordinary_conversations_and_bad_ones_are_skipped():
    good = Labelled(only="good")
    sample = good.read({"messages": [Q, A, Q, A], "label": True})
    assert [turn.weight for turn in sample.branches[0]] == [0, 1, 0, 1]
    assert sample.label is None and not good.labels() and Labelled().labels()
    with pytest.raises(Skipped) as caught:
        good.read({"messages": [Q, A], "label": False})
    assert caught.value.reason == str(caught.value) == "labelled bad (format.only: good)"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [A, Q]}, "column 'messages' ends with the role user, and the label is of an answer"),
        ({"completion": "a"}, "column 'completion' has no prompt"),
        ({"prompt": "q"}, "column 'completion' is missing"),
        ({"prompt": "q", "completion": [Q]}, "column 'completion' begins with the role user"),
        ({"prompt": [Q, A], "completion": "a"}, "column 'prompt' ends with an answer"),
    ],
)
def test_what_is_wrong_is_named(row, said):
    with pytest.raises(DataError, match=said):
        Labelled().read(row | {"label": True})


def test_skipped_rows_are_counted_with_their_places(tmp_path):
    rows = [{"messages": [Q, A], "label": label} for label in (True, False, True, False, False)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"path": str(tmp_path / "rows.jsonl"), "format": {"type": "labelled", "only": "good"}}
    recipe = Recipe(model="builtin:tiny", data={"train": source})
    ledger = Ledger()
    for one in rendered(recipe, load_tokenizer(Model(path="builtin:tiny"))):
        ledger.add(one)
    found = ledger.as_dict()
    assert (found["rows_read"], found["rows_kept"]) == (5, 2)
    entry = found["dropped"]["labelled bad (format.only: good)"]
    assert entry["count"] == 3
    assert [place.rpartition(":")[2] for place in entry["first"]] == ["2", "4", "5"]
