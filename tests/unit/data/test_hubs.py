"""Addresses of hubs: which dataset they mean, and what is said where a client or the hub is missing.

The clients of ModelScope and OpenMind need their hubs: here functions of their names copy a folder, with the arguments
of `modelscope.hub.snapshot_download.dataset_snapshot_download` (1.40) and `openmind_hub.snapshot_download` (1.3).
"""

import json
import os
import shutil
import subprocess
import sys
import time
import types

import datasets
import pytest

from tunesmith.data import hubs, source
from tunesmith.data.hubs import Address
from tunesmith.errors import DataError, MissingExtra
from tunesmith.recipe_data import Source


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


ADDRESSES = {
    "hf://owner/name": Address("hf", "owner/name"),
    "hf://datasets/owner/name": Address("hf", "owner/name"),
    "hf://squad": Address("hf", "squad"),
    "ms://owner/name@v1.0": Address("ms", "owner/name", "v1.0"),
    "om://owner/name/below/it": Address("om", "owner/name", None, "below/it"),
    "hf://owner/name@main/data/*.parquet": Address("hf", "owner/name", "main", "data/*.parquet"),
    "owner/name": Address("hf", "owner/name"),
}


@pytest.mark.parametrize("path", ADDRESSES)
def test_the_dataset_that_an_address_means(here, path):
    assert hubs.address(path) == ADDRESSES[path]
    assert source.local_files(Source(path=path)) == []


def test_a_file_of_a_dataset_or_a_folder_of_it():
    file, folder = Address("hf", "a/b", None, "data/x.jsonl.gz"), Address("hf", "a/b", None, "data")
    assert (file.data_files, file.data_dir) == ("data/x.jsonl.gz", None)
    assert (folder.data_files, folder.data_dir) == (None, "data")


def test_what_is_no_address():
    with pytest.raises(DataError, match=r"hf://a b is no address of a dataset: write hf://owner/name"):
        hubs.address("hf://a b")
    assert hubs.address("s3://owner/name") is None


def test_the_address_and_the_bare_id_read_the_same(here):
    (here / "set").mkdir()
    (here / "set/train.jsonl").write_text('{"text": "one"}\n')
    datasets.load_dataset("set", split="train")  # into the cache, as one of the hub
    shutil.copytree(here / "cache/set", here / "cache/owner___set")
    for path in ("owner/set", "hf://owner/set"):
        assert list(source.read(Source(path=path))) == [(f"{path}:1", {"text": "one"})]


def test_a_hub_out_of_reach_is_one_quick_line(here):
    """In a process of its own, as this one is told to be offline. Nothing answers at port 9."""
    code = (
        "import sys; from tunesmith.data import source; from tunesmith.recipe_data import Source; from tunesmith.errors"
        " import DataError\ntry: next(source.read(Source(path='hf://owner/name')))\nexcept DataError as e: print(e)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(here)}
    start = time.monotonic()
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert time.monotonic() - start < 20, "the library's own retries take 23 seconds of sleep"
    assert said.stdout.startswith("hf://owner/name: the hub cannot be reached (") and said.stdout.count("\n") == 1
    assert "Retrying" not in said.stderr


# ModelScope and OpenMind


@pytest.mark.parametrize(("path", "command"), [("ms://a/b", "modelscope"), ("om://a/b", "openmind_hub")])
def test_a_client_that_is_missing_is_named_with_its_command(monkeypatch, path, command):
    monkeypatch.setitem(sys.modules, command, None)
    with pytest.raises(MissingExtra, match=f"^{path} needs .*'s client: pip install {command}$"):
        list(source.read(Source(path=path)))


@pytest.fixture
def clients(here, monkeypatch):
    """Functions in the place of the clients', which tell what they were asked for and give a folder."""
    asked = []
    for split, texts in {"train": ["one", "two"], "test": ["three"]}.items():
        for folder in (".", "below"):
            path = here / "snapshot" / folder / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps({"text": f"{text} {folder}"}) + "\n" for text in texts))

    def dataset_snapshot_download(dataset_id=None, revision=None, allow_patterns=None):
        asked.append((dataset_id, revision, allow_patterns))
        return str(here / "snapshot")

    def snapshot_download(repo_id, *, repo_type=None, revision=None, allow_patterns=None):
        assert repo_type == "dataset"
        return dataset_snapshot_download(repo_id, revision, allow_patterns)

    for name in ("modelscope", "modelscope.hub", "modelscope.hub.snapshot_download", "openmind_hub"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["modelscope.hub.snapshot_download"].dataset_snapshot_download = dataset_snapshot_download
    sys.modules["openmind_hub"].snapshot_download = snapshot_download
    return asked


@pytest.mark.parametrize("hub", ["ms", "om"])
def test_what_a_client_fetched_is_read_as_a_copy(clients, here, hub):
    one = Source(path=f"{hub}://owner/name@v1/below", split="test")
    assert list(source.read(one)) == [(f"{hub}://owner/name@v1/below:1", {"text": "three below"})]
    assert clients == [("owner/name", "v1", "below/*")]
    before = source.fingerprint(one)
    assert source.fingerprint(one) == before
    (here / "snapshot/below/test.jsonl").write_text('{"text": "new"}\n')
    assert [row for _, row in source.read(one)] == [{"text": "new"}]
    assert source.fingerprint(one) != before
    file = Source(path=f"{hub}://owner/name/train.jsonl")
    assert [row for _, row in source.read(file)] == [{"text": "one ."}, {"text": "two ."}]


def test_what_a_client_raises_is_one_line(clients, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise type("NetworkError", (Exception,), {})("no\nanswer")

    monkeypatch.setattr(sys.modules["openmind_hub"], "snapshot_download", fail)
    with pytest.raises(DataError, match=r"^om://owner/name cannot be fetched: no answer \(NetworkError\)$"):
        list(source.read(Source(path="om://owner/name")))
