"""A share is a part of the rows by their content alone: stages with other parts have no row in common."""

import hashlib
import json
import math
import re
from datetime import date
from fractions import Fraction
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tunesmith.data import source
from tunesmith.errors import DataError
from tunesmith.recipe_data import Source


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbers(path: object, **options: object) -> list[int]:
    return [row["n"] for _, row in source.read(Source(path=str(path), **options))]


ROWS = [{"n": n, "text": f"row {n} é"} for n in range(500)]


def test_which_part_a_row_is_in_by_the_definition(tmp_path):
    """u is the digest of its JSON with sorted keys, as a fraction of 2**64; part k of n has floor(u n) + 1 = k."""

    def part(row: dict, parts: int) -> int:
        text = json.dumps(row, sort_keys=True, ensure_ascii=False)
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return math.floor(Fraction(int.from_bytes(digest, "big"), 2**64) * parts) + 1

    path = write(tmp_path / "rows.jsonl", ROWS)
    for first, last, whole in ((1, 1, 10), (3, 6, 10), (2, 2, 3), (1, 7, 7)):
        expected = [row["n"] for row in ROWS if first <= part(row, whole) <= last]
        assert numbers(path, share=f"{first}-{last}/{whole}") == expected


def test_stages_divide_the_rows_among_them(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    stages = [numbers(path, share=share) for share in ("1-2/10", "3-6/10", "7-10/10")]
    assert sorted(sum(stages, [])) == list(range(500))
    # 500 draws with p = 0.2, 0.4, 0.4: four standard deviations are 4 sqrt(500 p (1-p)) = 36, 44, 44
    assert abs(len(stages[0]) - 100) < 36
    assert all(abs(len(stage) - 200) < 44 for stage in stages[1:])
    # other wholes of the same place are the same part: 1/5 is 1-2/10
    assert numbers(path, share="1-1/5") == stages[0]


def test_a_part_does_not_depend_on_order_files_other_rows_or_what_is_made_of_the_row(tmp_path):
    whole = write(tmp_path / "whole.jsonl", ROWS)
    kept = set(numbers(whole, share="1-2/5"))
    backwards = [dict(reversed(row.items())) for row in reversed(ROWS)]
    assert set(numbers(write(tmp_path / "backwards.jsonl", backwards), share="1-2/5")) == kept
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts/a.jsonl", ROWS[:100])
    write(tmp_path / "parts/b.jsonl", ROWS[100:200])
    assert set(numbers(tmp_path / "parts", share="1-2/5")) == {n for n in kept if n < 200}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert set(numbers(tmp_path / "rows.parquet", share="1-2/5")) == kept
    changed = [
        row["n"]
        for _, row in source.read(
            Source(path=str(whole), share="1-2/5", columns={"body": "text"}, replace={"row": "line"})
        )
    ]
    assert set(changed) == kept


def test_equal_rows_fall_in_the_same_part(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row for row in ROWS[:50] for _ in range(2)])
    kept = numbers(path, share="1-1/2")
    assert kept[::2] == kept[1::2]
    assert 0 < len(kept) < 100


def test_num_samples_counts_what_the_share_leaves_and_places_stay(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    found = [where for where, _ in source.read(Source(path=str(path), share="2-2/2", num_samples=5))]
    assert found == [f"{path}:{n + 1}" for n in numbers(path, share="2-2/2")[:5]]


def test_a_share_without_a_row_is_an_error(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS[:1])
    parts = [share for share in ("1-1/2", "2-2/2") if _is_empty(path, share)]
    assert len(parts) == 1
    with pytest.raises(DataError, match=re.escape(f"none of the 1 rows falls in the share {parts[0]}; take a larger")):
        numbers(path, share=parts[0])


def _is_empty(path: Path, share: str) -> bool:
    try:
        return not numbers(path, share=share)
    except DataError:
        return True


def test_a_fingerprint_follows_the_share(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS[:9])
    prints = {source.fingerprint(Source(path=str(path), share=share)) for share in (None, "1-1/2", "2-2/2")}
    assert len(prints) == 3


def test_values_that_json_has_not(tmp_path):
    rows = [{"n": n, "raw": bytes([n]), "day": date(2024, 1, n + 1)} for n in range(20)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    parts = [numbers(tmp_path / "rows.parquet", share=f"{k}-{k}/2") for k in (1, 2)]
    assert sorted(sum(parts, [])) == list(range(20))
    assert all(parts)
