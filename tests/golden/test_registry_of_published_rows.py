"""The published dataset_info.json, where a checkout has it beside it: every entry is a source, and local ones read."""

import json
from itertools import islice
from pathlib import Path

import pytest

from tunesmith.data import registry, render, source
from tunesmith.formats.auto import Auto
from tunesmith.recipe_data import Data
from tunesmith.seams import Format

INFO = Path(__file__).parents[3] / "shared" / "data" / "dataset_info.json"
pytestmark = pytest.mark.skipif(
    not INFO.is_file(), reason=f"the published rows are not in {INFO.parent.name}/ beside the checkout"
)
LOCAL = {  # the formats by the README of the folder
    "identity": "alpaca",
    "alpaca_en_demo": "alpaca",
    "glaive_toolcall_en_demo": "sharegpt",
    "mllm_demo": "sharegpt",
    "dpo_en_demo": "pairs",
    "kto_en_demo": "labelled",
    "wiki_demo": "text",
    "c4_demo": "text",
}
BRANCHES = {"pairs": ("chosen", "rejected")}


def resolved(name: str):
    data = Data(train=name, registry=str(INFO))
    (one,) = registry.resolved(data, data.train)
    return one


def format_of(one) -> Format:
    where, row = next(source.read(one))
    return render.format_of(one, row, where)


@pytest.mark.parametrize("name", LOCAL)
def test_rows_of_a_local_entry_are_read(name):
    one = resolved(name)
    format_ = format_of(one)
    assert type(format_).__module__.rpartition(".")[2] == LOCAL[name]
    for _, row in islice(source.read(one), 50):
        sample = format_.read(row)
        assert len(sample.branches) == len(BRANCHES.get(LOCAL[name], ("answer",)))
        assert (sample.label is not None) == (LOCAL[name] == "labelled")
        last = sample.branches[0][-1]
        assert last.role == ("text" if LOCAL[name] == "text" else "assistant")


def test_all_local_entries_are_looked_at():
    entries = json.loads(INFO.read_text())
    assert {name for name, entry in entries.items() if "file_name" in entry} == set(LOCAL)


def test_every_entry_of_a_hub_is_a_source():
    entries = {name: entry for name, entry in json.loads(INFO.read_text()).items() if "file_name" not in entry}
    for name, entry in entries.items():
        one = resolved(name)
        hub, _, place = one.path.partition("://")
        assert (hub == "hf") == ("hf_hub_url" in entry)
        assert place == entry.get(f"{hub}_hub_url") + (f"/{entry['folder']}" if "folder" in entry else "")
        assert (one.name, one.split) == (entry.get("subset"), entry.get("split", "train"))
        alone = set(entry.get("columns", ())) == {"prompt"} and not entry.get("ranking")
        assert isinstance(one.format, Auto) == alone
    assert len(entries) == 90
