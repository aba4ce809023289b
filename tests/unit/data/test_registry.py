"""A name in a recipe is the source that a registry says, with what the recipe says on top."""

import json
from pathlib import Path

import pytest

from tunesmith.data import registry, source
from tunesmith.data.ledger import Ledger
from tunesmith.data.load import load_rows
from tunesmith.data.prepare import prepare
from tunesmith.data.render import rendered
from tunesmith.engine.model import load_tokenizer
from tunesmith.errors import DataError
from tunesmith.folder import look_for_files
from tunesmith.formats.alpaca import Alpaca
from tunesmith.formats.auto import Auto
from tunesmith.recipe import Model, Recipe
from tunesmith.recipe_data import Data, Source

ROWS = [{"q": f"What is {n}?", "a": f"It is {n}."} for n in range(6)]
YAML = """
numbers: {path: sets/numbers.jsonl, format: {type: alpaca, system: Count.}, columns: {instruction: q, output: a}}
few: {path: sets/numbers.jsonl, columns: {instruction: q, output: a}, num_samples: 2, weight: 2, share: 1-2/2}
all: sets/*.jsonl
hub: owner/name
store: s3://bucket/rows.jsonl
inside: builtin:identity
absolute: ABSOLUTE/sets/numbers.jsonl
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder, beside a folder with a registry and its rows."""
    (tmp_path / "team/sets").mkdir(parents=True)
    (tmp_path / "team/sets/numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "team/reg.yaml").write_text(YAML.replace("ABSOLUTE", str(tmp_path / "team")))
    (tmp_path / "work/data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def one(path: str, file: str | None = "../team/reg.yaml", **options: object) -> Source:
    data = Data(train={"path": path, **options}, registry=file)
    (found,) = registry.resolved(data, data.train)
    return found


def error(path: str, file: str | None = "../team/reg.yaml", **options: object) -> str:
    with pytest.raises(DataError) as caught:
        one(path, file, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_entry_is_a_source_whose_path_begins_at_the_registry(here):
    found = one("numbers")
    assert found.path == "../team/sets/numbers.jsonl"
    assert found.format == Alpaca(system="Count.")
    assert [row for _, row in source.read(found)][1] == {"instruction": "What is 1?", "output": "It is 1."}
    assert one("all").path == "../team/sets/*.jsonl"
    assert len(list(source.read(one("all")))) == 6
    assert one("absolute").path == str(here / "team/sets/numbers.jsonl")


def test_what_lies_elsewhere_stays_there(here):
    assert [one(name).path for name in ("hub", "store", "inside")] == [
        "owner/name",
        "s3://bucket/rows.jsonl",
        "builtin:identity",
    ]
    (here / "team/owner/name").mkdir(parents=True)
    assert one("hub").path == "../team/owner/name"


def test_what_the_recipe_says_outweighs_the_entry(here):
    found = one("few")
    assert (found.num_samples, found.weight, found.share, found.format) == (2, 2.0, "1-2/2", Auto())
    found = one("few", num_samples=5, format={"type": "alpaca"}, columns={"input": "c", "output": "b"})
    assert (found.num_samples, found.weight, found.format) == (5, 2.0, Alpaca())
    assert found.columns == {"instruction": "q", "input": "c", "output": "b"}
    assert one("few", weight=1.0).weight == 1.0  # said, though it is the default
    assert one("numbers", format="auto").format == Auto()


def test_a_name_may_say_its_registry(here):
    for path, file in (("reg:few", "../team/reg.yaml"), ("../team/reg.yaml:few", None), ("../team/reg.yaml:few", "x")):
        assert one(path, file).num_samples == 2
    info = {"few": {"file_name": "sets/numbers.jsonl", "num_samples": 3}}
    (here / "team/dataset_info.json").write_text(json.dumps(info))
    assert one("../team/dataset_info.json:few").num_samples == 3
    assert one("few", "../team/dataset_info.json").num_samples == 3
    assert one("dataset_info:few", "../team/dataset_info.json").num_samples == 3


@pytest.mark.parametrize("folder", [".", "data"])
def test_dataset_info_is_found_here_and_in_data(here, folder):
    assert error("dataset_info:x", None).startswith("dataset_info:x: there is no dataset_info.json here or in data/")
    (here / "work" / folder / "rows.jsonl").write_text('{"instruction": "i", "output": "o"}')
    (here / "work" / folder / "dataset_info.json").write_text('{"x": {"file_name": "rows.jsonl"}}')
    found = one("dataset_info:x", "../team/reg.yaml")
    assert Path(found.path) == Path(folder) / "rows.jsonl"
    assert [where for where, _ in source.read(found)] == [f"{found.path}:1"]


def test_what_is_no_name_is_left_as_it_is(here):
    (here / "work/rows.jsonl").write_text('{"text": "x"}')
    for path in (
        "rows.jsonl",
        "./rows.jsonl",
        "*.jsonl",
        "owner/name",
        "hf://squad",
        "builtin:identity",
        "s3://a/b.csv",
    ):
        assert one(path) == Source(path=path)
    assert one("squad", None) == Source(path="squad")
    assert registry.resolved(Data(train="few"), (one("few"),)) == (one("few"),)  # a second time changes nothing


def test_names_that_are_not_there(here):
    assert error("fwe") == "../team/reg.yaml has no dataset 'fwe'. Did you mean 'few'?"
    assert "has no dataset 'numbrs'. Did you mean 'numbers'?" in error("reg:numbrs")
    assert error("x", "none.yaml") == "there is no registry none.yaml. Known: data."
    assert error("x", "../team/rge.yaml") == "there is no registry ../team/rge.yaml. Did you mean 'reg.yaml'?"
    assert error("none.json:x", None) == "there is no registry none.json. Known: data."
    assert error("nowhere/none.json:x", None) == "there is no registry nowhere/none.json: there is no folder nowhere"


def test_a_name_that_is_a_file_here_too_is_asked_about(here):
    (here / "work/few").mkdir()
    assert error("few") == (
        "few is a file or folder here and an entry of ../team/reg.yaml: write ./few for the one, reg:few for the other"
    )
    assert one("./few").path == "./few"
    assert one("reg:few").num_samples == 2


WRONG = {
    "list.yaml": ("- few", "list.yaml must be a mapping of names and sources, and is a list"),
    "broken.yaml": ("few: [", "broken.yaml:1 is not valid YAML"),
    "twice.yaml": ("few: a.json\nfew: b.json", "twice.yaml:2: 'few' is said twice"),
    "broken.json": ('{"few": }', "the registry broken.json is not valid JSON: Expecting value"),
    "twice.json": ('{"few": "a.json", "few": "b.json"}', "the key 'few' stands twice"),
    "list.json": ('["few"]', "the registry list.json must be an object of names and sources"),
    "number.yaml": ("few: 7", "number.yaml: few must be a path, or an object with `path` (or `file_name`), and is 7"),
    "unknown.yaml": ("few: {path: a.json, formt: alpaca}", "unknown.yaml: few: formt"),
    "format.yaml": ("few: {path: a.json, format: alpacca}", "Did you mean 'alpaca'?"),
    "latin.yaml": (b"few: na\xefve.json", "the registry latin.yaml is not UTF-8: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_registry_that_is_wrong_is_one_line(here, name):
    content, message = WRONG[name]
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in error("few", name)


# Where names enter


def recipe(**data: object) -> Recipe:
    return Recipe(
        model="builtin:tiny",
        data={"registry": "../team/reg.yaml", "max_tokens": 256, "cache_dir": "cache", **data},
        train={"row_tokens": 256, "num_train_epochs": 1},
    )


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Model(path="builtin:tiny"))


def test_rows_are_rendered_prepared_and_loaded_by_name(here, tokenizer):
    named = recipe(train=["numbers"], eval=["few"])
    ledger = Ledger()
    for sample in rendered(named, tokenizer):
        ledger.add(sample)
    assert ledger.as_dict()["rows_kept"] == 6
    prepared = named.data.template.prepare(tokenizer)
    store = prepare(named, named.data.train, prepared)
    assert len(store) == 6
    assert "numbers is ../team/sets/numbers.jsonl, in the format alpaca" in store.notes
    rows = load_rows(named, prepared)
    assert "held out: few is ../team/sets/numbers.jsonl, in the format auto" in rows.lines
    assert rows.ledger["eval"]["samples"] == 2


def test_a_recipe_with_its_names_resolved(here):
    named = recipe(train=["few", {"path": "few", "weight": 3}], eval="numbers")
    found = registry.applied(named).data
    assert [one.weight for one in found.train] == [2.0, 3.0]
    assert [one.path for one in found.eval] == ["../team/sets/numbers.jsonl"]
    assert registry.applied(named, to_train=False).data.train == named.data.train
    assert registry.applied(recipe(train="few", eval=2)).data.eval == 2


def test_a_name_that_is_wrong_is_said_before_a_model_is_loaded(here):
    look_for_files(recipe(train=["numbers", "few"], eval=["few"]))
    with pytest.raises(DataError, match="has no dataset 'fwe'"):
        look_for_files(recipe(train="numbers", eval=["fwe"]))
    (here / "team/sets/numbers.jsonl").unlink()
    with pytest.raises(DataError, match="there is no file ../team/sets/numbers.jsonl"):
        look_for_files(recipe(train="numbers"))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"path": "a.jsonl", "columns": 5}, r"r\.json: a: `columns` must be an object of names and is 5"),
        ({"path": "a.jsonl", "replace": ["x"]}, r"r\.json: a: `replace` must be an object of names and is \['x'\]"),
        ({"path": "a.jsonl", "registered": "x"}, r"r\.json: a: registered: no such option"),
        ({"file_name": "", "hf_hub_url": None}, r"r\.json: a does not say where the data is"),
    ],
)
def test_an_entry_of_other_types_is_one_line(tmp_path, entry, problem):
    file = tmp_path / "r.json"
    file.write_text(json.dumps({"a": entry}))
    (one,) = (data := Data(train=({"path": f"{file}:a"},))).train
    with pytest.raises(DataError, match=problem) as caught:
        registry.resolved(data, (one,))
    assert "\n" not in str(caught.value)
