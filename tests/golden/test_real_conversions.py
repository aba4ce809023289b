"""Published rows in another format and file are the same samples, where a checkout has them beside it."""

import json
from pathlib import Path

import pytest

from tunesmith.cli.main import main
from tunesmith.data import source
from tunesmith.formats.auto import choose
from tunesmith.recipe_data import Source

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the published rows are not in {DATA.name}/ beside the checkout"
)


def samples(path):
    rows = [row for _, row in source.read(Source(path=str(path)))]
    format_ = choose(rows[0])
    return [format_.read(row) for row in rows]


@pytest.mark.parametrize(
    ("name", "to", "kind", "number"),
    [
        ("MedQA2019.xlsx", "messages", "jsonl", 690),
        ("glaive_toolcall_en_demo.json", "messages", "parquet", 300),
        ("dpo_en_demo.json", "pairs", "csv", 300),
        ("kto_en_demo.json", "labelled", "xlsx", 300),
        ("wiki_demo.txt", "text", "tsv", 30),
    ],
)
def test_every_row_is_the_same_sample(tmp_path, capsys, name, to, kind, number):
    out = tmp_path / f"rows.{kind}"
    assert main(["data", "convert", str(DATA / name), str(out), f"to={to}", "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert (account["rows_read"], account["rows_written"], account["left_out"]) == (number, number, {})
    assert samples(out) == samples(DATA / name)
