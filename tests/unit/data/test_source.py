"""A source gives its rows with their places, in order, whatever its path says, or says why it does not."""

import json
import re
import shutil
import sys
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import HfHubHTTPError

from tunesmith.data import source
from tunesmith.errors import DataError
from tunesmith.formats.alpaca import Alpaca
from tunesmith.formats.text import Text
from tunesmith.recipe_data import Source


def write(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: object, **options: object) -> list[tuple[str, dict]]:
    return list(source.read(Source(path=str(path), **options)))


def error(path: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Which files, and what places in them are called


@pytest.mark.parametrize("path", ["a.jsonl", "./a.jsonl", "../{}/a.jsonl"])
def test_a_place_is_the_path_as_it_was_written(here, path):
    write(here / "a.jsonl", {"text": "one"}, {"text": "two"})
    path = path.format(here.name)
    assert read(path) == [(f"{path}:1", {"text": "one"}), (f"{path}:2", {"text": "two"})]


def test_a_glob_is_expanded_in_order(here):
    for name in ("b/x.jsonl", "a/z.jsonl", "a/y.csv", "a/notes.md", "c.jsonl"):
        write(here / name, {"a": 1}, {"a": 2})
    assert [where for where, _ in read("*/*.jsonl")] == [
        "a/z.jsonl:1",
        "a/z.jsonl:2",
        "b/x.jsonl:1",
        "b/x.jsonl:2",
    ]
    assert source.local_files(Source(path="**/*")) == [
        Path(p) for p in ("a/y.csv", "a/z.jsonl", "b/x.jsonl", "c.jsonl")
    ]
    assert source.local_files(Source(path="[ab]/[yz]*")) == [Path("a/y.csv"), Path("a/z.jsonl")]


def test_a_file_whose_name_has_glob_signs_is_itself(here):
    write(here / "a[1].jsonl", {"text": "one"})
    assert read("a[1].jsonl") == [("a[1].jsonl:1", {"text": "one"})]


def test_a_folder_is_the_readable_files_in_it(here):
    for name in ("d/b.jsonl", "d/a.txt.gz", "d/README.md", "d/.hidden.jsonl", "d/below/c.jsonl"):
        write(here / name, {"a": 1})
    assert source.local_files(Source(path="d")) == [Path("d/a.txt.gz"), Path("d/b.jsonl")]


def test_the_home_folder_is_expanded(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    write(here / "a.jsonl", {"text": "one"})
    assert read("~/a.jsonl") == [(f"{here}/a.jsonl:1", {"text": "one"})]


def test_num_samples_ends_over_all_files_and_reads_no_further(here):
    write(here / "a.jsonl", {"a": 1}, {"a": 2})
    (here / "b.jsonl").write_text('{"a": 3}\nbroken')
    assert [row["a"] for _, row in read("*.jsonl", num_samples=3)] == [1, 2, 3]
    assert error("*.jsonl", num_samples=4).startswith("b.jsonl:2 is not valid JSON")


def test_rows_are_read_as_they_are_asked_for(here):
    (here / "a.jsonl").write_text('{"a": 1}\nbroken')
    assert next(source.read(Source(path="a.jsonl"))) == ("a.jsonl:1", {"a": 1})


# Columns


def test_columns_are_renamed_and_the_others_stay(here):
    write(here / "a.jsonl", {"Question": "q", "Answer": "a", "instruction": "old", "id": 7})
    (_, row), = read("a.jsonl", columns={"instruction": "Question", "output": "Answer"})  # fmt: skip
    assert row == {"instruction": "q", "output": "a", "id": 7}
    (_, row), = read("a.jsonl", columns={"Question": "Answer", "Answer": "Question"})  # fmt: skip
    assert row == {"Question": "a", "Answer": "q", "instruction": "old", "id": 7}
    (_, row), = read("a.jsonl", columns={"text": "id", "again": "id"})  # fmt: skip
    assert row == {"Question": "q", "Answer": "a", "instruction": "old", "text": 7, "again": 7}


def test_a_row_without_a_named_column_is_named(here):
    write(here / "a.jsonl", {"Answer": "a"}, {"answer": "a"})
    said = error("a.jsonl", columns={"output": "Answer"})
    assert said == "a.jsonl:2: `columns` takes output from 'Answer', no column of the row. Did you mean 'answer'?"


# What is built in


def test_built_in_data_is_read_by_split(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "BUILTIN_FOLDER", tmp_path)
    train = write(tmp_path / "identity-train.jsonl", {"text": "one"}, {"text": "two"})
    write(tmp_path / "identity-eval.jsonl", {"text": "three"})
    assert [where for where, _ in read("builtin:identity")] == ["builtin:identity:1", "builtin:identity:2"]
    assert read("builtin:identity", split="eval") == [("builtin:identity:1", {"text": "three"})]
    assert source.local_files(Source(path="builtin:identity")) == [train]


def test_built_in_data_that_does_not_exist():
    assert error("builtin:idendity") == (
        "there is no built-in data 'builtin:idendity'. Did you mean 'builtin:identity'?"
    )
    assert error("builtin:identity", split="evil") == ("builtin:identity has no split 'evil'. Did you mean 'eval'?")


# What is wrong with a path

WRONG = {
    "rows.jsnl": r"there is no file rows.jsnl\. Did you mean 'rows.jsonl'\?$",
    "./rows": r"there is no file ./rows\. Did you mean 'rows.jsonl'",
    "nowhere/rows.csv": r"there is no file nowhere/rows.csv: there is no folder nowhere$",
    "hollow/rows.csv": r"there is no file hollow/rows.csv: the folder hollow is empty$",
    "*.parquet": r"^\*.parquet matches no file; readable are .json, .jsonl, .*, each also with .gz or .zst$",
    "*.xls": r"^\*.xls matches only old.xls, which cannot be read",
    "old.xls": r"^old.xls: its name must end in one of .json, .*, each also with .gz or .zst$",
    "hollow": r"^the folder hollow has no file that can be read: .json, .*, each also with .gz or .zst$",
    "nothing.jsonl": r"^nothing.jsonl has no rows",
    "nothing.csv": r"^nothing.csv has no rows: it is empty, or holds a header alone$",
    "nothing.json": r"^nothing.json has no rows",
}


@pytest.mark.parametrize("path", WRONG)
def test_a_path_that_gives_nothing_says_why(here, path):
    write(here / "rows.jsonl", {"a": 1})
    (here / "hollow").mkdir()
    for name, content in {
        "old.xls": "x",
        "nothing.jsonl": "\n \n",
        "nothing.csv": "a,b\n",
        "nothing.json": "[]",
    }.items():
        (here / name).write_text(content)
    assert re.search(WRONG[path], error(path))


def test_options_that_a_file_has_no_use_for_are_refused(here):
    write(here / "rows.jsonl", {"a": 1})
    assert "has no split 'test'" in error("rows.jsonl", split="test")
    assert error("row.jsonl", split="test").startswith("there is no file row.jsonl")
    assert "`name` 'main' is a workbook's sheet" in error("rows.jsonl", name="main")


@pytest.mark.parametrize(
    ("path", "is_id"),
    [(path, True) for path in ("owner/name", "owner/name-v1.5", "squad")]
    + [
        (path, False)
        for path in ("a/b/c", "a/b.json", "a/b.csv.gz", "squad.tsv", "a/b.arrow", "./a", "/a/b", "a*/b", "~/a")
    ],
)
def test_which_paths_are_taken_for_hub_ids(here, path, is_id):
    if is_id:
        assert source.local_files(Source(path=path)) == []
    else:
        with pytest.raises(DataError, match="there is no file|matches no file"):
            source.local_files(Source(path=path))


def test_what_lies_here_is_never_looked_for_on_the_hub(here):
    write(here / "owner/name/rows.jsonl", {"a": 1})
    assert read("owner/name") == [("owner/name/rows.jsonl:1", {"a": 1})]


# Datasets of the hub, on copies of them


@pytest.fixture
def copy(here, monkeypatch):
    """A copy of a hub dataset with two splits and two configurations, and an own cache for `datasets`."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", here / "cache")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "name": "Al"}]
    tables = {
        "plain/train-0.parquet": [{"messages": turns, "id": None}, {"messages": turns[:1], "id": 5}],
        "plain/test-0.parquet": [{"messages": turns[1:], "id": 6}],
        "other/train-0.parquet": [{"text": "x"}],
    }
    for name, rows in tables.items():
        (here / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), here / "set" / name)
    splits = {name: {"split": name.partition("/")[2].partition("-")[0], "path": name} for name in tables}
    configs = [
        {
            "config_name": config,
            "data_files": [one for name, one in splits.items() if name.startswith(config)],
        }
        for config in ("plain", "other")
    ]
    (here / "set" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return here / "set"


def test_the_copy_of_a_hub_dataset_is_read_by_name_and_split(copy):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "name": "Al"}]
    assert read("set", name="plain") == [
        ("set:1", {"messages": turns, "id": None}),
        ("set:2", {"messages": turns[:1], "id": 5}),
    ]
    assert read("set", name="plain", split="test") == [("set:1", {"messages": turns[1:], "id": 6})]
    assert read("set", name="other", columns={"t": "text"}, num_samples=1) == [("set:1", {"t": "x"})]
    assert source.local_files(Source(path="set", name="other"))[0] == Path("set/other/train-0.parquet")


def test_a_split_of_a_flat_folder_is_found_by_datasets(copy, here):
    for split in ("train", "test"):
        write(here / "flat" / f"{split}.jsonl", {"text": split})
    assert read("flat", split="test") == [("flat:1", {"text": "test"})]
    assert len(read("flat")) == 2


def test_the_copy_of_a_dataset_that_changes_is_read_anew(copy, here):
    one = Source(path="set", name="other")
    before = source.fingerprint(one)
    assert source.fingerprint(one) == before
    assert list(source.read(one)) == [("set:1", {"text": "x"})]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["new"]}), here / "set/other/train-0.parquet")
    assert list(source.read(one)) == [("set:1", {"text": "new"})]
    assert source.fingerprint(one) != before


def test_a_hub_id_is_read_from_the_cache_when_the_hub_is_out_of_reach(copy, here):
    datasets.load_dataset("set", "plain", split="train")
    shutil.copytree(here / "cache" / "set", here / "cache" / "owner___set")
    shutil.rmtree(here / "set")
    one = Source(path="owner/set", name="plain")
    assert [where for where, _ in source.read(one)] == ["owner/set:1", "owner/set:2"]
    assert source.local_files(one) == []
    test = one.model_copy(update={"split": "test"})
    assert source.fingerprint(one) == source.fingerprint(one) != source.fingerprint(test)


def test_a_copy_that_datasets_cannot_read_is_one_line(copy, here):
    said = "set cannot be read as the copy of a hub dataset: "
    assert error("set").startswith(f"{said}Config name is missing")
    assert error("set", name="plain", split="dev").startswith(f"{said}Bad split: dev. Available splits: ['train'")
    (here / "scripted/below").mkdir(parents=True)
    (here / "scripted/scripted.py").write_text("raise SystemExit")
    write(here / "scripted/below/rows.jsonl", {"a": 1})
    assert "Dataset scripts are no longer supported" in error("scripted")
    (here / "mixed").mkdir()
    (here / "mixed/test.jsonl").write_text('{"a": 1}\n{"a": "broken')
    assert error("mixed", split="test").startswith("mixed cannot be read as the copy of a hub dataset: ")


def test_a_hub_dataset_that_cannot_be_had_is_one_line(copy, here):
    said = "nobody/none: no file here, and no hub dataset that loads: "
    assert re.match(f"{said}.*nobody/none.*Offline", error("nobody/none"))
    write(here / "data/rows.jsonl", {"a": 1})
    assert error("data/rows").endswith("Did you mean the file data/rows.jsonl?")


def test_what_only_a_hub_in_reach_raises_is_one_line(here, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise problem from ValueError("column b is new")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    problem = datasets.exceptions.DatasetGenerationError("An error occurred\nwhile generating")
    said = "owner/set: no file here, and no hub dataset that loads: "
    assert error("owner/set") == (f"{said}An error occurred while generating: column b is new (DatasetGenerationError)")
    (transport,) = set(HfHubHTTPError.__bases__) - {OSError}
    problem = type("ProxyError", (transport,), {})("403 Forbidden")
    assert error("owner/set") == f"{said}403 Forbidden (ProxyError)"


# Fingerprints


def test_a_fingerprint_holds_all_that_decides_the_rows(here):
    write(here / "a.jsonl", {"a": 1})
    write(here / "b.jsonl", {"a": 1})
    different = [
        Source(path="a.jsonl"),
        Source(path="b.jsonl"),
        Source(path="*.jsonl"),
        Source(path="a.jsonl", num_samples=1),
        Source(path="a.jsonl", columns={"b": "a"}),
        Source(path="a.jsonl", format=Text()),
        Source(path="a.jsonl", format=Alpaca()),
        Source(path="a.jsonl", format=Alpaca(system="Be brief.")),
    ]
    prints = [source.fingerprint(one) for one in different]
    assert all(re.fullmatch(r"[0-9a-f]{64}", one) for one in prints)
    assert len(set(prints)) == len(prints)
    assert prints == [source.fingerprint(one) for one in different]


def test_a_fingerprint_follows_the_content_and_not_the_folder_or_the_time(here, monkeypatch):
    write(here / "a.jsonl", {"a": 1})
    one = Source(path="a.jsonl")
    before = source.fingerprint(one)
    write(here / "elsewhere/a.jsonl", {"a": 1})
    monkeypatch.chdir(here / "elsewhere")
    assert source.fingerprint(one) == before
    write(here / "elsewhere/a.jsonl", {"a": 2})
    assert source.fingerprint(one) != before


def test_a_fingerprint_changes_when_a_glob_finds_another_file_or_name(here):
    write(here / "a.jsonl", {"a": 1})
    before = source.fingerprint(Source(path="*.jsonl"))
    write(here / "b.jsonl", {"a": 1})
    both = source.fingerprint(Source(path="*.jsonl"))
    (here / "b.jsonl").rename(here / "c.jsonl")
    assert len({before, both, source.fingerprint(Source(path="*.jsonl"))}) == 3


def test_replace_changes_texts_at_any_depth(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"instruction": "Who is {{name}}?", "history": [["{{name}}!", "yes"]], "n": 1}]))
    one = Source(path=str(path), replace={"{{name}}": "Smith"})
    assert [row for _, row in source.read(one)] == [
        {"instruction": "Who is Smith?", "history": [["Smith!", "yes"]], "n": 1}
    ]


def test_replace_in_a_row_too_deep_says_which(tmp_path):
    path = tmp_path / "rows.jsonl"
    depth = sys.getrecursionlimit() - 100  # which torch's compiler raises
    path.write_text('{"text": "a"}\n{"text": "a", "x": ' + "[" * depth + "]" * depth + "}\n")
    assert len(read(path)) == 2
    assert error(path, replace={"a": "b"}).startswith(f"{path}:2 has lists or objects too deep")
