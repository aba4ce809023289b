"""A store gives back what was written, or is not there: an interrupted write is never read."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tunesmith.data.rendered import Rendered
from tunesmith.data.store import ARRAYS, DEAD_SECONDS, META, Store, StoreWriter, is_whole
from tunesmith.errors import DataError
from tunesmith.types import Tokens

KILLED = """
import os, sys, time
import numpy as np
from pathlib import Path
from tunesmith.data.rendered import Rendered
from tunesmith.data.store import StoreWriter
from tunesmith.types import Tokens
tokens = Tokens(np.arange(5000, dtype=np.int32), np.ones(5000, np.float32))
with StoreWriter(Path(sys.argv[1])) as writer:
    writer.add([Rendered(f"f:{n}", (tokens,)) for n in range(50)])
    print("writing", flush=True)
    time.sleep(60)
"""


def sample(*branches, **said):
    made = [Tokens(np.asarray(ids, np.int32), np.asarray(weight, np.float32)) for ids, weight in branches]
    return Rendered(said.pop("where", "f:1"), tuple(made), **said)


def write(folder, *samples):
    with StoreWriter(folder) as writer:
        writer.notes.append("read as text")
        writer.add(samples)
    return Store.open(folder, cached=False)


SAMPLES = (
    sample(([1, 2, 3], [0, 1, 0.5])),
    sample(dropped="empty answer"),
    sample(([4, 5], [0, 1]), ([6, 7, 8, 9], [0, 0, 1, 1]), label=0.25),
)


def test_what_was_written_is_read(tmp_path):
    store = write(tmp_path / "a", *SAMPLES)
    assert len(store) == 2
    assert store.lengths().tolist() == [3, 6]
    read = [[(t.ids.tolist(), t.weight.tolist()) for t in store.branches(n)] for n in range(2)]
    assert read == [[([1, 2, 3], [0, 1, 0.5])], [([4, 5], [0, 1]), ([6, 7, 8, 9], [0, 0, 1, 1])]]
    assert store.row.tolist() == [0, 2]
    assert np.isnan(store.label[0]) and store.label[1] == 0.25
    assert store.notes == ("read as text",)
    assert store.trained.tolist() == [2, 3] and store.source.tolist() == [0, 0]
    assert store.all_ids(1).tolist() == [4, 5, 6, 7, 8, 9]
    assert (store.ledger.rows_read, store.ledger.rows_kept) == (3, 2)
    assert os.listdir(tmp_path) == ["a"]


def test_a_store_without_samples_can_be_read(tmp_path):
    store = write(tmp_path / "a", sample(dropped="empty answer"))
    assert len(store) == 0 and store.lengths().tolist() == []


def test_the_digest_is_of_the_content(tmp_path):
    digest = write(tmp_path / "a", *SAMPLES).digest
    assert write(tmp_path / "b", *SAMPLES).digest == digest
    for number, other in enumerate(
        (
            SAMPLES[:1],
            SAMPLES[::-1],
            (*SAMPLES[:2], sample(([4, 5], [0, 1]), ([6, 7, 8, 9], [0, 0, 1, 1]), label=0.5)),
            (*SAMPLES[:2], sample(([4, 5], [0, 1]), ([6, 7, 8, 9], [0, 0, 1, 2]), label=0.25)),
            (*SAMPLES[:2], sample(([4, 5, 6], [0, 1, 0]), ([7, 8, 9], [0, 1, 1]), label=0.25)),
        )
    ):
        assert write(tmp_path / str(number), *other).digest != digest


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="in the middle"), StoreWriter(tmp_path / "a") as writer:
        writer.add(SAMPLES)
        raise RuntimeError("in the middle")
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_no_store_and_its_rest_goes_when_it_is_old(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name != "a" and (left / "ids").stat().st_size > 0
    assert not is_whole(tmp_path / "a")
    write(tmp_path / "a", *SAMPLES)
    assert {path.name for path in tmp_path.iterdir()} == {"a", left.name}  # its writer might live
    long_ago = time.time() - DEAD_SECONDS - 60
    for path in (left, *left.iterdir()):
        os.utime(path, (long_ago, long_ago))
    write(tmp_path / "b", *SAMPLES)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_nothing_of_others_is_removed(tmp_path):
    others = [tmp_path / ".cache-of-mine", tmp_path / "unfinished-work"]
    for folder in others:
        folder.mkdir()
        os.utime(folder, (0, 0))
    write(tmp_path / "a", *SAMPLES)
    assert all(folder.is_dir() for folder in others)


def test_two_writers_of_one_store(tmp_path):
    with StoreWriter(tmp_path / "a") as first, StoreWriter(tmp_path / "a") as second:
        for sample_ in SAMPLES:
            first.add([sample_])
            second.add([sample_])
    assert os.listdir(tmp_path) == ["a"]
    assert Store.open(tmp_path / "a", cached=False).lengths().tolist() == [3, 6]


@pytest.mark.parametrize("name", [*ARRAYS, META])
def test_a_store_that_lost_bytes_is_no_store_and_is_written_anew(tmp_path, name):
    whole = write(tmp_path / "a", *SAMPLES)
    assert is_whole(tmp_path / "a") and not is_whole(tmp_path / "b")
    file = tmp_path / "a" / name
    file.write_bytes(file.read_bytes()[:-1])
    assert not is_whole(tmp_path / "a")
    file.unlink()
    assert not is_whole(tmp_path / "a")
    assert write(tmp_path / "a", *SAMPLES).digest == whole.digest
    assert is_whole(tmp_path / "a")


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"rendered rows cannot be kept in .*file: .* Say data.cache_dir=FOLDER"):
        StoreWriter(tmp_path / "file" / "a")


def test_places_and_sources_are_kept(tmp_path):
    with StoreWriter(tmp_path / "a") as writer:
        writer.begin("first")
        writer.add([sample(([1, 2], [0, 1]), where="folder:x/rows.jsonl:17"), sample(dropped="empty answer")])
        writer.begin("second")
        writer.add([sample(([1, 2], [0, 1]), where="rows"), sample(([1, 3], [0, 1]), where="folder:x/rows.jsonl:3")])
    store = Store.open(tmp_path / "a", cached=False)
    assert [store.place(number) for number in range(3)] == ["folder:x/rows.jsonl:17", "rows", "folder:x/rows.jsonl:3"]
    assert store.sources == ("first", "second") and store.source.tolist() == [0, 1, 1]
    assert store.ledger.sources["first"]["rows_read"] == store.ledger.sources["second"]["rows_read"] == 2
    assert store.equals.tolist() == [0, 0, 2]
    with StoreWriter(tmp_path / "b") as writer:
        writer.add([sample(([1, 2], [0, 1])), sample(([1, 2], [0, 1])), sample(([1, 3], [0, 1]))])
    other = Store.open(tmp_path / "b", cached=False)
    assert other.digest != store.digest  # the numbers of the rows
    with StoreWriter(tmp_path / "c") as writer:
        writer.begin("another name")
        writer.add([sample(([1, 2], [0, 1])), sample(([1, 2], [0, 1])), sample(([1, 3], [0, 1]))])
    assert Store.open(tmp_path / "c", cached=False).digest == other.digest  # names are no content
