"""Every row is in the account once: kept, or dropped for a reason with its first places."""

import numpy as np

from fixtures_chats import chat, recipe, render
from tunesmith.data.ledger import CUT, DUPLICATE, FIRST_PLACES, Ledger, source_names
from tunesmith.data.loss import NO_TURN
from tunesmith.data.render import EMPTY_ANSWER, OVERLONG
from tunesmith.data.rendered import Rendered
from tunesmith.types import Tokens

LATER = {  # counted by tests of their own
    "rows_refused", "repeated_tokens", "shared_tokens", "tied_answers", "joined_answers", "tokens_dropped", "found",
    "lengths", "sources",
}  # fmt: skip


def sample(where, *weights, **said):
    """A sample of branches with these weights."""
    branches = tuple(Tokens(np.arange(len(one), dtype=np.int32), np.float32(one)) for one in weights)
    return Rendered(where, branches, **said)


def test_counts_are_of_rows_samples_and_tokens():
    ledger = Ledger()
    ledger.add(sample("f:1", [0, 0, 1, 1]))
    ledger.add(sample("f:2", [0, 0.5], [1, 1, 0]))  # the first token of a branch is never learned
    ledger.add(sample("f:3", dropped=NO_TURN))
    ledger.add(sample("f:4", [0, 1], truncated=True))
    ledger.add(sample("f:5", [0, 1, 1]))
    ledger.add(sample("f:5", dropped=OVERLONG, part=1))
    ledger.add(sample("f:5", [0, 0, 1], part=2))
    ledger.add(sample("f:6", dropped=OVERLONG))
    ledger.add(sample("f:6", dropped=OVERLONG, part=1))
    counts = ledger.as_dict()
    known = {name: counts[name] for name in counts.keys() - LATER}
    assert known == {
        "rows_read": 6,
        "rows_kept": 4,
        "rows_truncated": 1,
        "rows_split": 1,
        "parts_dropped": 1,
        "samples": 5,
        "tokens": 4 + 2 + 3 + 2 + 3 + 3,
        "trained_tokens": 2 + 1 + 1 + 1 + 2 + 1,
        "longest_tokens": 4,
        "dropped": {
            NO_TURN: {"count": 1, "first": ["f:3"]},
            OVERLONG: {"count": 1, "first": ["f:6"]},
        },
    }
    assert Ledger.from_dict(counts).as_dict() == counts
    assert Ledger.from_dict(counts).lines() == ledger.lines()


def test_the_first_places_of_each_reason_are_named():
    ledger = Ledger()
    rows = [chat("q", ""), {"messages": [{"role": "user", "content": "q"}]}] * 5 + [chat("q", "a")]
    for one in render(rows):
        ledger.add(one)
    assert ledger.as_dict()["dropped"] == {
        EMPTY_ANSWER: {"count": 5, "first": ["rows:1", "rows:3", "rows:5"]},
        NO_TURN: {"count": 5, "first": ["rows:2", "rows:4", "rows:6"]},
    }
    assert FIRST_PLACES == 3
    assert ledger.rows_read == ledger.rows_kept + 10


def test_the_account_in_words():
    ledger = Ledger()
    for number in range(1, 1201):
        ledger.add(sample(f"f:{number}", [0, 1, 1, 0]))
    ledger.add(sample("f:1201", dropped=NO_TURN))
    for number in range(1202, 1206):
        ledger.add(sample(f"f:{number}", dropped=OVERLONG))
    assert ledger.lines() == [
        "1,205 rows read, 1,200 kept",
        "1 dropped: no trained turn (f:1201)",
        "4 dropped: longer than data.max_tokens (f:1202, f:1203, f:1204, ...)",
        "1,200 samples, 4,800 tokens, 2,400 trained (50.0%), longest 4",
    ]
    ledger.add(sample("f:1206", [0, 1], truncated=True))
    ledger.add(sample("f:1207", [0, 1]))
    ledger.add(sample("f:1207", dropped=NO_TURN, part=1))
    assert ledger.lines()[3:6] == [
        "1 truncated to data.max_tokens",
        "1 split to fit",
        "1 parts of rows dropped as too long or with nothing to learn",
    ]


def test_tokens_of_what_was_dropped_or_cut_off_are_counted_by_reason():
    ledger = Ledger()
    ledger.add(sample("f:1", [0, 1, 1], lost_tokens=7, truncated=True))
    ledger.add(sample("f:2", dropped=OVERLONG, lost_tokens=30))
    ledger.add(sample("f:3", dropped=OVERLONG, lost_tokens=12))
    ledger.add(sample("f:4", dropped="unreadable"))
    counts = ledger.as_dict()
    assert counts["tokens_dropped"] == {CUT: 7, OVERLONG: 42}
    assert counts["tokens"] == 3
    lines = ledger.lines()
    assert "2 dropped: longer than data.max_tokens (f:2, f:3; 42 tokens)" in lines
    assert "1 dropped: unreadable (f:4)" in lines
    assert "1 truncated to data.max_tokens: 7 tokens cut off" in lines


def test_rows_of_several_sources_are_counted_by_source():
    ledger = Ledger()
    ledger.add(sample("a:1", [0, 1]), "a")
    ledger.add(sample("a:2", dropped=NO_TURN), "a")
    ledger.add(sample("b:1", [0, 1, 1], [0, 0, 1]), "b")
    ledger.add(sample("b:1", [0, 1], part=1), "b")
    counts = ledger.as_dict()
    assert counts["sources"] == {
        "a": {"rows_read": 2, "rows_kept": 1, "samples": 1, "tokens": 2, "trained_tokens": 1},
        "b": {"rows_read": 1, "rows_kept": 1, "samples": 2, "tokens": 8, "trained_tokens": 4},
    }
    assert counts["lengths"] == {"1-7": 3}
    assert ledger.lines()[-2:] == [
        "of a: 1 samples of 2 rows, 2 tokens (20.0% of all), 1 trained (20.0% of all)",
        "of b: 2 samples of 1 rows, 8 tokens (80.0% of all), 4 trained (80.0% of all)",
    ]
    assert Ledger.from_dict(counts).as_dict() == counts
    assert ledger.lines(of_samples=True)[-3:] == [
        "3 samples, 10 tokens, 3 samples trained (100.0%), longest 3",
        "of a: 1 samples of 2 rows, 2 tokens (20.0% of all), 1 samples trained (33.3% of all)",
        "of b: 2 samples of 1 rows, 8 tokens (80.0% of all), 2 samples trained (66.7% of all)",
    ]


def test_what_was_found_is_said_until_it_is_dropped():
    ledger = Ledger(found={DUPLICATE: {"count": 4, "first": ["f:2", "f:3", "f:5"]}})
    hint = "4 samples equal an earlier one (f:2, f:3, f:5, ...): data.duplicates=drop leaves them out"
    assert hint in ledger.lines()
    assert hint.partition(": ")[0] in ledger.lines(streaming=True)  # which refuses the option
    ledger.dropped[DUPLICATE] = ledger.found[DUPLICATE]
    lines = ledger.lines()
    assert hint not in lines and f"4 dropped: {DUPLICATE} (f:2, f:3, f:5, ...)" in lines


def test_a_source_is_called_by_its_path_and_a_number_where_that_comes_again():
    sources = recipe(["a.jsonl", {"path": "b.jsonl"}, {"path": "a.jsonl", "share": "2-2/2"}, "a.jsonl"]).data.train
    assert source_names(sources) == ["a.jsonl", "b.jsonl", "a.jsonl (2)", "a.jsonl (3)"]
