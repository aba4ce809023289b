"""A few broken rows are counted; many stop the run, and say which."""

import pytest

import fixtures_chats as chats
from tunesmith.data.load import load_rows
from tunesmith.data.refuse import Tolerance
from tunesmith.data.rendered import Rendered
from tunesmith.engine.model import load_tokenizer
from tunesmith.errors import DataError
from tunesmith.recipe import Model

BROKEN = {"messages": None}
OWN_FORMAT = '''"""Reads a row as one mapping."""
from tunesmith.seams import Format
from tunesmith.types import Message, Sample


class Mine(Format):
    """It copies its row, so that nobody can tell what it reads."""

    def read(self, row):
        """The sample."""
        row = {**row}
        return Sample(((Message("user", row["asked"]), Message("assistant", row["output"])),))
'''


def rows(number, broken):
    return [BROKEN if place in broken else chats.chat(f"q{place}", "a") for place in range(1, number + 1)]


def load(tmp_path, listed, **data):
    path = chats.write_rows(tmp_path / "rows.jsonl", listed)
    recipe = chats.recipe(path, cache_dir=str(tmp_path / "cache"), train={"row_tokens": 512}, **data)
    return load_rows(recipe, recipe.data.template.prepare(load_tokenizer(Model(path="builtin:tiny"))))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_tenth_may_be_broken_and_one_more_may_not(tmp_path, monkeypatch, processes):
    monkeypatch.setattr("tunesmith.data.render.CHUNK_ROWS", 7)
    found = load(tmp_path, rows(30, {4, 9, 30}), num_processes=processes)
    ledger = found.ledger["train"]
    assert (ledger["rows_read"], ledger["rows_kept"], ledger["rows_refused"]) == (30, 27, 3)
    (reason,) = ledger["dropped"]
    assert reason.startswith("unreadable: ") and ledger["dropped"][reason]["count"] == 3
    assert [place.rpartition(":")[2] for place in ledger["dropped"][reason]["first"]] == ["4", "9", "30"]
    assert any(line.startswith(f"data: 3 dropped: {reason} (") for line in found.lines)
    with pytest.raises(DataError, match=r"^4 of the first 30 rows cannot be used, more than a tenth\. ") as caught:
        load(tmp_path, rows(30, {4, 9, 12, 30}), num_processes=processes)
    assert [part.partition(" ")[0].rpartition(":")[0][-2:] for part in str(caught.value).split(" | ")][1:] == [
        ":9",
        "12",
    ]


def test_the_first_row_must_be_readable_however_many_others_are(tmp_path):
    with pytest.raises(DataError, match=r"rows.jsonl:1: "):
        load(tmp_path, rows(100, {1}))


def test_a_name_in_columns_that_the_format_does_not_read_is_refused(tmp_path):
    row = {"Instruction": "Name a bird.", "input": "", "output": "The heron."}
    path = chats.write_rows(tmp_path / "rows.jsonl", [row] * 3)

    def load(**options):
        recipe = chats.recipe({"path": path, **options}, cache_dir=str(tmp_path / "cache"), train={"row_tokens": 512})
        return load_rows(recipe, recipe.data.template.prepare(load_tokenizer(Model(path="builtin:tiny"))))

    assert load(columns={"instruction": "Instruction", "system": ""}).ledger["train"]["rows_kept"] == 3
    said = r"rows.jsonl:1: `columns` names 'instrution', which the format qa does not read. Did you mean 'instruction'"
    with pytest.raises(DataError, match=said):  # else `input` would be the question, and empty
        load(columns={"instrution": "Instruction"})
    file = tmp_path / "mine.py"
    file.write_text(OWN_FORMAT)
    assert load(columns={"asked": "Instruction"}, format=str(file)).ledger["train"]["rows_kept"] == 3


def test_of_fewer_than_ten_rows_any_but_the_first_may_be_broken(tmp_path):
    assert load(tmp_path, rows(9, {2, 3, 4, 5})).ledger["train"]["rows_kept"] == 5


def test_a_long_source_stops_at_its_thousandth_row():
    good, bad = Rendered("f:1", (), dropped="empty answer"), Rendered("f:2", (), dropped="x", refused="it is broken")
    tolerance = Tolerance()
    tolerance.look([good, bad] * 499)  # 499 of 998: not looked at yet
    with pytest.raises(DataError, match=r"500 of the first 1,000 rows cannot be used.* f:2: it is broken \| f:2"):
        tolerance.look([good, bad])
    tolerance = Tolerance()
    tolerance.look([bad] * 100 + [good] * 900)
    with pytest.raises(DataError, match="102 of the first 1,002"):
        tolerance.look([bad, bad])


def test_parts_of_a_row_are_one_row():
    tolerance = Tolerance()
    tolerance.look([Rendered("f:1", (), part=part) for part in range(4)])
    assert tolerance.rows == 1
