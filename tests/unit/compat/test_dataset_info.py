"""What each key of LLaMA-Factory's dataset_info.json becomes, with the rows that such an entry is written for."""

import json
from pathlib import Path

import pytest

from tunesmith.compat import dataset_info
from tunesmith.data import registry, render, source
from tunesmith.errors import DataError
from tunesmith.recipe_data import Data, Source
from tunesmith.types import Message, Sample

TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
SPOKEN = [("user", "Hi"), ("assistant", "Ho")]


def options(**entry: object) -> dict:
    entry = entry if any(key in entry for key in dataset_info.PLACES) else {"hf_hub_url": "a/b", **entry}
    return dataset_info.options(entry, "info.json: one", Path("/data"))


def error(**entry: object) -> str:
    with pytest.raises(DataError) as caught:
        options(**entry)
    message = str(caught.value)
    assert message.startswith("info.json: one: ") and "\n" not in message
    return message.removeprefix("info.json: one: ")


@pytest.fixture
def samples(tmp_path):
    """The samples of some rows, as the entry of a dataset_info.json says to read them."""

    def read(entry: dict, *rows: dict) -> list[Sample]:
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        (tmp_path / "dataset_info.json").write_text(json.dumps({"one": {"file_name": "rows.json", **entry}}))
        data = Data(train="one", registry=str(tmp_path / "dataset_info.json"))
        (one,) = registry.resolved(data, data.train)
        placed = list(source.read(one))
        format_ = render.format_of(one, placed[0][1], placed[0][0])
        return [format_.read(row) for _, row in placed]

    return read


def said(sample: Sample, branch: int = 0) -> list[tuple[str, object]]:
    return [(turn.role, turn.content) for turn in sample.branches[branch]]


# Where the rows lie


@pytest.mark.parametrize(("entry", "path"), [
    ({"hf_hub_url": "a/b", "ms_hub_url": "c/d", "om_hub_url": "e/f"}, "hf://a/b"),
    ({"ms_hub_url": "c/d", "om_hub_url": "e/f"}, "ms://c/d"),
    ({"om_hub_url": "e/f"}, "om://e/f"),
    ({"hf_hub_url": "a/b", "file_name": "rows.json", "script_url": "x.py"}, "hf://a/b"),
    ({"hf_hub_url": "a/b", "folder": "python", "revision": "v1"}, "hf://a/b@v1/python"),
    ({"cloud_file_name": "s3://bucket/rows.json", "file_name": "rows.json"}, "s3://bucket/rows.json"),
])  # fmt: skip
def test_where_an_entry_lies(entry, path):
    assert options(**entry)["path"] == path


def test_a_file_lies_beside_the_registry(tmp_path):
    (tmp_path / "rows.json").write_text("[]")
    found = dataset_info.options({"file_name": "rows.json"}, "one", tmp_path)
    assert found["path"] == str(tmp_path / "rows.json")


def test_subset_split_and_number():
    found = options(subset="en", split="test", num_samples=7)
    assert (found["name"], found["split"], found["num_samples"]) == ("en", "test", 7)


WRONG = {
    "script": ({"script_url": "load.py"}, "`script_url` (load.py) is code that would be run"),
    "missing": ({"file_name": "none.json"}, "there is no /data/none.json"),
    "cloud": ({"cloud_file_name": "rows.json"}, "`cloud_file_name` ('rows.json') must be an address"),
    "place": ({"hf_hub_url": 7}, "`hf_hub_url` must be text and is 7"),
    "key": ({"formating": "alpaca"}, "there is no key 'formating'. Did you mean 'formatting'"),
    "formatting": ({"formatting": "sharegtp"}, "`formatting` is 'sharegtp'. Did you mean 'sharegpt'?"),
    "column": ({"columns": {"promt": "x"}}, "columns: there is no key 'promt'. Did you mean 'prompt'?"),
    "column of another": ({"columns": {"messages": "x"}}, "columns: there is no key 'messages'"),
    "column kind": ({"columns": {"prompt": 3}}, "`columns.prompt` must be text and is 3"),
    "tag": ({"formatting": "sharegpt", "tags": {"rol_tag": "x"}}, "tags: there is no key 'rol_tag'. Did you mean 'rol"),
    "tags of alpaca": ({"tags": {"role_tag": "x"}}, "`tags` (role_tag) is not of the formatting alpaca"),
    "block": ({"columns": ["prompt"]}, "`columns` must be an object of names and is ['prompt']"),
    "ranking": ({"ranking": "yes"}, "`ranking` must be true or false and is 'yes'"),
    "subset of a file": ({"cloud_file_name": "s3://a/b.json", "subset": "en"}, "`subset` ('en') is of datasets"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_its_entry(name):
    entry, message = WRONG[name]
    assert error(**entry).startswith(message)


# How the rows are read


def test_alpaca_with_every_column_of_another_name(samples):
    columns = {"prompt": "q", "query": "c", "response": "a", "history": "h", "system": "s"}
    row = {"q": "Name it.", "c": "It", "a": "Ada", "h": [["Hi", "Ho"]], "s": "Be brief."}
    turns = [("system", "Be brief."), *SPOKEN, ("user", "Name it.\nIt"), ("assistant", "Ada")]
    assert said(samples({"columns": columns}, row)[0]) == turns


def test_a_partial_block_of_columns_keeps_the_defaults_of_the_others(samples):
    rows = [{"q": "Name it.", "input": "It", "output": "Ada"}, {"q": "Again.", "output": "Bo"}]
    found = samples({"columns": {"prompt": "q"}}, *rows)
    assert said(found[0]) == [("user", "Name it.\nIt"), ("assistant", "Ada")]
    assert said(found[1]) == [("user", "Again."), ("assistant", "Bo")]
    found = samples({"columns": {"response": "a"}}, {"instruction": "Name it.", "input": "It", "a": "Ada"})
    assert said(found[0]) == [("user", "Name it.\nIt"), ("assistant", "Ada")]


def test_a_column_of_no_name_is_not_read(samples):
    row = {"instruction": "Name it.", "input": "It", "output": "Ada"}
    for nothing in ("", None):
        assert said(samples({"columns": {"query": nothing}}, row)[0]) == [("user", "Name it."), ("assistant", "Ada")]


def test_a_prompt_alone_is_text_where_rows_have_no_answer(samples):
    for columns in ({"prompt": "body"}, {"prompt": "body", "query": "", "response": ""}):
        assert said(samples({"columns": columns}, {"body": "A text.", "url": "u"})[0]) == [("text", "A text.")]
    assert said(samples({"columns": {"prompt": "text"}}, {"text": "A text."})[0]) == [("text", "A text.")]
    answered = {"instruction": "Name it.", "output": "Ada"}
    assert said(samples({"columns": {"prompt": "instruction"}}, answered)[0]) == [
        ("user", "Name it."),
        ("assistant", "Ada"),
    ]


def test_sharegpt_with_its_defaults_and_beside_them_system_and_tools(samples):
    row = {"conversations": TURNS, "s": "Be brief.", "t": '[{"name": "f"}]'}
    (found,) = samples({"formatting": "sharegpt", "columns": {"system": "s", "tools": "t"}}, row)
    assert said(found) == [("system", "Be brief."), *SPOKEN]
    assert found.tools[0]["function"]["name"] == "f"


def test_every_tag_of_another_name(samples):
    tags = {
        "role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "you", "observation_tag": "seen",
        "function_tag": "call", "system_tag": "rule",
    }  # fmt: skip
    talk = [
        ("rule", "Be brief."),
        ("me", "Hi"),
        ("call", '{"name": "f", "arguments": {}}'),
        ("seen", "4"),
        ("you", "Ho"),
    ]
    row = {"dialog": [{"who": who, "what": what} for who, what in talk]}
    (found,) = samples({"formatting": "sharegpt", "columns": {"messages": "dialog"}, "tags": tags}, row)
    assert [turn.role for turn in found.branches[0]] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.branches[0][2].tool_calls[0]["function"]["name"] == "f"


def test_a_partial_block_of_tags_keeps_the_defaults_of_the_others(samples):
    turns = [{"from": "user", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    assert (
        said(samples({"formatting": "sharegpt", "tags": {"user_tag": "user"}}, {"conversations": turns})[0]) == SPOKEN
    )
    turns = [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Ho"}]
    tags = {"role_tag": "role", "content_tag": "content", "system_tag": None}
    assert said(samples({"formatting": "sharegpt", "tags": tags}, {"conversations": turns})[0]) == SPOKEN


@pytest.mark.parametrize("column", ["messages", "conversations", "dialog"])
def test_openai(samples, column):
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]
    entry = {"formatting": "openai"} | ({"columns": {"messages": column}} if column != "messages" else {})
    assert said(samples(entry, {column: turns})[0]) == [("system", "S"), *SPOKEN]


def test_openai_with_a_tag_of_another_name(samples):
    turns = [{"role": "user", "content": "Hi"}, {"role": "model", "content": "Ho"}]
    entry = {"formatting": "openai", "tags": {"assistant_tag": "model"}}
    assert said(samples(entry, {"messages": turns})[0]) == SPOKEN


def test_ranking(samples):
    answers = {"good": {"from": "gpt", "value": "Ho"}, "bad": {"from": "gpt", "value": "Hm"}}
    columns = {"chosen": "good", "rejected": "bad"}
    (found,) = samples(
        {"formatting": "sharegpt", "ranking": True, "columns": columns}, {"conversations": TURNS[:1], **answers}
    )
    assert (said(found), said(found, 1)) == (SPOKEN, [("user", "Hi"), ("assistant", "Hm")])
    row = {"question": "Hi", "input": "you", "good": "Ho", "bad": "Hm", "system": "S"}
    (found,) = samples({"ranking": True, "columns": {"prompt": "question", **columns}}, row)
    assert said(found) == [("system", "S"), ("user", "Hi\nyou"), ("assistant", "Ho")]
    assert said(found, 1)[-1] == ("assistant", "Hm")


def test_kto_tag(samples):
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    entry = {"formatting": "sharegpt", "columns": {"messages": "talk", "kto_tag": "good"}, "tags": tags}
    found = samples(entry, {"talk": turns, "good": True}, {"talk": turns, "good": False})
    assert [(said(one), one.label) for one in found] == [(SPOKEN, 1.0), (SPOKEN, 0.0)]
    columns = {"prompt": "prompt", "response": "completion", "kto_tag": "good"}
    (found,) = samples({"columns": columns}, {"prompt": "Hi", "completion": "Ho", "good": False})
    assert (said(found), found.label) == (SPOKEN, 0.0)


def test_columns_of_media_get_the_names_that_formats_know():
    columns = {"images": "pictures", "videos": "films", "audios": "sounds"}
    for formatting in dataset_info.FORMATTINGS:
        assert options(formatting=formatting, columns=columns)["columns"] == columns


def test_what_differs_from_nothing_is_not_said():
    found = options(formatting="sharegpt", columns={"messages": "conversations"}, tags={"role_tag": "from"})
    assert found == {"path": "hf://a/b", "columns": {}, "format": {"type": "sharegpt"}}
    assert Source(**found).format.read({"conversations": TURNS}).branches[0][0] == Message("user", "Hi")
