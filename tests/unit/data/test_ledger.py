"""Every row is in the account once: kept, or dropped for a reason with its first places."""

import numpy as np

from fixtures_chats import chat, render
from tunesmith.data.ledger import FIRST_PLACES, Ledger
from tunesmith.data.render import EMPTY_ANSWER, NO_TURN, OVERLONG, Rendered
from tunesmith.types import Tokens


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
    assert counts == {
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
    assert ledger.lines()[3:5] == [
        "1 truncated to data.max_tokens",
        "1 split to fit; 1 parts of them dropped as too long or with nothing to learn",
    ]
