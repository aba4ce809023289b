"""Rows are rendered once, by any number of processes alike, and again as soon as anything that matters changes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest

import fixtures_chats as chats
import fixtures_models
from fixtures_chats import chat, recipe, write_rows
from tunesmith.data import prepare as preparing
from tunesmith.data import render
from tunesmith.data.prepare import cache_folder, cache_key, prepare, prepare_rows
from tunesmith.data.render import Renderer
from tunesmith.data.store import ARRAYS
from tunesmith.errors import DataError, TemplateError
from tunesmith.recipe_data import Source

ROWS = [chat(f"question {n}", f"answer {n}") for n in range(5)]
EMPTY = chat("question", "")

SLOW = """
import sys, time
import fixtures_chats, fixtures_models
from tunesmith.data import render
from tunesmith.data.prepare import prepare
own = render.Renderer.render
def slow(self, *rows):
    found = own(self, *rows)
    print("rendered", flush=True)
    time.sleep(float(sys.argv[3]))
    return found
render.Renderer.render = slow
render.CHUNK_ROWS = 2
said = fixtures_chats.recipe(sys.argv[1], cache_dir=sys.argv[2])
print(prepare(said, said.data.train, fixtures_models.tiny_tokenizer()).digest)
"""


def prepared(said, tokenizer=None):
    tokenizer = said.data.template.prepare(tokenizer or fixtures_models.tiny_tokenizer())
    return prepare(said, said.data.train, tokenizer)


def start(rows, cache, seconds):
    paths = os.pathsep.join([str(Path(chats.__file__).parent), *sys.path])
    words = [sys.executable, "-c", SLOW, rows, str(cache), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def rendering(monkeypatch):
    """The places of the rows that are rendered from here on."""
    places = []
    own = Renderer.render
    monkeypatch.setattr(
        Renderer,
        "render",
        lambda self, rows, *how: places.extend(where for where, _ in rows) or own(self, rows, *how),
    )
    return places


# One process or many


def test_the_number_of_processes_changes_nothing(tmp_path, monkeypatch):
    """Chunks come back in file order, and drops are counted in it."""
    monkeypatch.setattr(render, "CHUNK_ROWS", 3)
    random = np.random.default_rng(5)
    some = [chats.conversation(random) for _ in range(20)]
    some[4] = some[11] = EMPTY
    long = [chat("q", "river " * 200), chat("a", "b", "c " * 200, "d")]
    path = write_rows(tmp_path / "rows.jsonl", [*some, *long])
    found = []
    for processes in (1, 3):
        cache = tmp_path / str(processes)
        data = {"num_processes": processes, "cache_dir": str(cache), "max_tokens": 300, "overlong": "split"}
        store = prepared(recipe(path, **data))
        (folder,) = cache.iterdir()
        found.append((store.ledger.as_dict(), [(folder / name).read_bytes() for name in ARRAYS], store.digest))
    assert found[0] == found[1]
    counts = found[0][0]
    assert counts["rows_read"] == 22
    assert counts["dropped"]["empty answer"] == {"count": 2, "first": [f"{path}:5", f"{path}:12"]}
    lost = sum(entry["count"] for entry in counts["dropped"].values())
    assert counts["rows_kept"] == counts["rows_read"] - lost and lost >= 3


def test_an_error_in_a_process_is_the_same_line(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "CHUNK_ROWS", 2)
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": [{"role": "assistant", "content": "a"}]}, *ROWS])
    said = []
    for processes in (1, 2):
        with pytest.raises(TemplateError) as caught:
            prepared(recipe(path, num_processes=processes, cache_dir=str(tmp_path / "cache")))
        said.append(str(caught.value))
    assert said[0] == said[1] and said[0].startswith(f"{path}:1: turn 1 of 1")
    assert os.listdir(tmp_path / "cache") == []


# The cache


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(rows, cache, monkeypatch):
    own = Renderer.render

    def render_and_write(self, *some):
        write_rows(Path(rows), [*ROWS, chat("one", "more")])
        return own(self, *some)

    with monkeypatch.context() as patch, pytest.raises(DataError, match=f"^{rows} changed while it was read"):
        patch.setattr(Renderer, "render", render_and_write)
        prepared(recipe(rows, cache_dir=str(cache)))
    assert os.listdir(cache) == []
    assert prepared(recipe(rows, cache_dir=str(cache))).ledger.rows_read == 6


def test_a_second_call_renders_nothing(rows, cache, rendering):
    first = prepared(recipe(rows, cache_dir=str(cache)))
    assert len(rendering) == 5 and not first.cached
    second = prepared(recipe(rows, cache_dir=str(cache)))
    assert len(rendering) == 5 and second.cached
    assert second.digest == first.digest
    assert second.notes == first.notes == (f"{rows}: read as messages (format: auto)",)
    assert second.ledger.as_dict() == first.ledger.as_dict()


@pytest.mark.parametrize(
    "other",
    [
        {"max_tokens": 1000},
        {"overlong": "split"},
        {"loss": {"turns": "last"}},
        {"template": "plain"},
        {"train": {"path": "ROWS", "num_samples": 4}},
        {"train": {"path": "ROWS", "columns": {"system": "messages"}}},
        {"train": {"path": "ROWS", "format": "messages"}},
    ],
    ids=str,
)
def test_an_option_that_matters_misses(rows, cache, other):
    other = json.loads(json.dumps(other).replace("ROWS", rows))
    tokenizer = fixtures_models.tiny_tokenizer()
    one = recipe(rows, cache_dir=str(cache))
    changed = recipe(**{"path": other.pop("train", rows), "cache_dir": str(cache)} | other)
    key = cache_key(one, one.data.train, tokenizer)
    assert cache_key(one, one.data.train, fixtures_models.tiny_tokenizer()) == key
    assert cache_key(changed, changed.data.train, tokenizer) != key


def test_an_option_of_the_format_misses(rows):
    keys = set()
    for system in (None, "Be brief."):
        said = recipe({"path": rows, "format": {"type": "alpaca", "system": system}})
        keys.add(cache_key(said, said.data.train, fixtures_models.tiny_tokenizer()))
    assert len(keys) == 2


def test_what_does_not_change_a_token_hits(rows):
    said = recipe(rows)
    tokenizer = fixtures_models.tiny_tokenizer()
    key = cache_key(said, said.data.train, tokenizer)
    for other in ({"seed": 1}, {"shuffle": False}, {"eval": 0.5}, {"num_processes": 3}, {"window_samples": 9}):
        changed = recipe(rows, **other)
        assert cache_key(changed, changed.data.train, tokenizer) == key
    heavier = recipe({"path": rows, "weight": 3.0}, duplicates="drop", mix="all_exhausted")
    assert cache_key(heavier, heavier.data.train, tokenizer) == key
    tokenizer("a text", truncation=True, max_length=2, padding="max_length")  # what a call leaves behind
    assert tokenizer.backend_tokenizer.truncation is not None
    assert cache_key(said, said.data.train, tokenizer) == key
    assert prepared(said, tokenizer).lengths().min() > 2


def test_the_objective_misses(rows):
    keys = {
        cache_key(said, said.data.train, fixtures_models.tiny_tokenizer())
        for said in (recipe(rows), recipe(rows, objective="pretrain"))
    }
    assert len(keys) == 2


def test_a_changed_row_misses(tmp_path, cache, rendering):
    for number, changed in enumerate((ROWS, [*ROWS[:4], chat("question 4", "answer 9")], ROWS[::-1])):
        path = write_rows(tmp_path / "rows.jsonl", changed)
        assert not prepared(recipe(path, cache_dir=str(cache))).cached
        assert len(rendering) == 5 * (number + 1)
    assert prepared(recipe(path, cache_dir=str(cache))).cached


def test_a_changed_template_or_tokenizer_misses(tmp_path, rows, cache):
    said = recipe(rows, cache_dir=str(cache))
    from tokenizers.processors import TemplateProcessing

    changes = [fixtures_models.tiny_tokenizer() for _ in range(5)]
    changes[1].chat_template = changes[1].chat_template + "{# the same text #}"
    changes[2].add_tokens("<new>")
    changes[3].eos_token = "<|endoftext|>"
    changes[4].backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    keys = {cache_key(said, said.data.train, tokenizer) for tokenizer in changes}
    file = tmp_path / "mine.jinja"
    for text in ("{{ messages }}", "{{ messages }} "):
        file.write_text(text, encoding="utf-8")
        said = recipe(rows, template={"type": "jinja", "file": str(file)})
        tokenizer = said.data.template.prepare(fixtures_models.tiny_tokenizer())
        keys.add(cache_key(said, said.data.train, tokenizer))
    assert len(keys) == 7


def test_changed_code_misses(tmp_path, rows, monkeypatch):
    file = tmp_path / "my_format.py"
    file.write_text("from tunesmith.formats.messages import Messages\n\n\nclass Mine(Messages):\n    pass\n")
    said = recipe({"path": rows, "format": str(file)})
    tokenizer = fixtures_models.tiny_tokenizer()
    keys = {cache_key(said, said.data.train, tokenizer)}
    file.write_text(file.read_text() + "# changed\n")
    keys.add(cache_key(said, said.data.train, tokenizer))
    code = {path.name for path in preparing._code(said, said.data.train)}
    assert {"render.py", "overlong.py", "files.py", "jinja.py", "messages.py", "types.py", "sft.py"} <= code
    own = preparing._digest
    for changed in ("render.py", "files.py", "jinja.py", "types.py"):
        monkeypatch.setattr(
            preparing, "_digest", lambda path, changed=changed: own(path) + "x" * (path.name == changed)
        )
        keys.add(cache_key(said, said.data.train, tokenizer))
    monkeypatch.setattr(preparing, "version", lambda name: "0")
    keys.add(cache_key(said, said.data.train, tokenizer))
    assert len(keys) == 7


def test_what_is_defined_in_a_notebook_is_not_kept(rows, cache, monkeypatch):
    notebook = types.ModuleType("a_notebook")  # as `__main__` is there: a module without a file
    monkeypatch.setitem(sys.modules, "a_notebook", notebook)
    exec("from tunesmith.formats.messages import Messages\nclass Mine(Messages): pass", vars(notebook))
    for _ in range(2):
        store = prepared(recipe({"path": rows, "format": notebook.Mine()}, cache_dir=str(cache)))
        assert not store.cached and len(store) == 5
    assert not cache.exists()


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "tunesmith" / "rendered"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache" / "tunesmith" / "rendered"
    assert cache_folder("~/mine") == tmp_path / "mine"


# Interrupted and simultaneous writes


def test_an_interrupted_write_never_hits(rows, cache, monkeypatch):
    monkeypatch.setattr(render, "CHUNK_ROWS", 2)
    own = Renderer.render

    def failing(self, rows, *how):
        if rows[0][0].endswith(":3"):
            raise KeyboardInterrupt
        return own(self, rows, *how)

    monkeypatch.setattr(Renderer, "render", failing)
    with pytest.raises(KeyboardInterrupt):
        prepared(recipe(rows, cache_dir=str(cache)))
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(Renderer, "render", own)
    store = prepared(recipe(rows, cache_dir=str(cache)))
    assert not store.cached and len(store) == 5


def test_a_killed_process_never_leaves_a_hit(rows, cache):
    process = start(rows, cache, seconds=60)
    assert [process.stdout.readline() for _ in range(1)] == ["rendered\n"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list(cache.iterdir())) == 1  # removed by a later writer once it is old: see test_store
    store = prepared(recipe(rows, cache_dir=str(cache)))
    assert not store.cached and len(store) == 5


def test_two_processes_may_write_the_same_store(rows, cache):
    both = [start(rows, cache, seconds=0.3) for _ in range(2)]
    digests = {process.communicate()[0].splitlines()[-1] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    store = prepared(recipe(rows, cache_dir=str(cache)))
    assert store.cached and digests == {store.digest}
    assert len(list(cache.iterdir())) == 1


# Nothing left, and rows of an iterable


def test_when_every_row_is_dropped_one_line_has_the_reasons(tmp_path, cache):
    rows = [EMPTY, EMPTY, {"messages": [{"role": "user", "content": "q"}]}, chat("q", "a " * 100), EMPTY, EMPTY]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        prepared(recipe(path, max_tokens=50, cache_dir=str(cache)))
    assert str(caught.value) == (
        f"none of the 6 rows can be trained on: 4 × empty answer ({path}:1, {path}:2, {path}:5); "
        f"1 × no trained turn ({path}:3); 1 × longer than data.max_tokens ({path}:4)"
    )
    assert list(cache.iterdir()) == []


def test_rows_of_an_iterable_are_read_once_and_leave_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(render, "CHUNK_ROWS", 2)
    read = []
    stream = (read.append(number) or row for number, row in enumerate(ROWS))
    store = prepare_rows(recipe("unused"), stream, fixtures_models.tiny_tokenizer())
    assert read == [0, 1, 2, 3, 4]
    assert len(store) == 5 and not store.cached
    assert fixtures_models.tiny_tokenizer().decode(store.branches(4)[0].ids).count("answer 4<|im_end|>") == 1
    assert os.listdir(tmp_path) == []


def test_rows_of_an_iterable_are_the_same_as_those_of_a_file(rows, cache):
    file = prepared(recipe(rows, cache_dir=str(cache)))
    store = prepare_rows(recipe("unused"), ROWS, fixtures_models.tiny_tokenizer())
    assert store.digest == file.digest
    assert store.notes == ("rows: read as messages (format: auto)",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "none of the 0 rows can be trained on: there are no rows"),
        ([ROWS[0], "text"], "rows:2 must be a mapping of columns and is a str"),
        ([{"message": []}, ROWS[0]], "rows:1: no format fits the columns message"),
        ([{"a": 1}], "rows:1: no format fits the columns a"),
    ],
)
def test_bad_rows_of_an_iterable(given, said):
    with pytest.raises(DataError) as caught:
        prepare_rows(recipe("unused"), given, fixtures_models.tiny_tokenizer())
    assert str(caught.value).startswith(said)


# How many processes


def test_small_files_are_rendered_in_this_process(rows, monkeypatch):
    one = Source(path=rows)
    said = recipe(rows)
    assert preparing.processes_for(said, one) == 1
    assert preparing.processes_for(recipe(rows, num_processes=7), one) == 7
    size = Path(rows).stat().st_size
    monkeypatch.setattr(preparing, "_processors", lambda: 5)
    for bytes_, processes in ((size // 10, 5), (size // 3, 3), (size, 1), (size + 1, 1)):
        monkeypatch.setattr(preparing, "PROCESS_BYTES", bytes_)
        assert preparing.processes_for(said, one) == processes


@pytest.mark.skipif(sys.platform != "linux", reason="where a process may be kept to some processors")
def test_the_processors_are_those_that_this_process_may_use():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert preparing._processors() == 1
    finally:
        os.sched_setaffinity(0, before)
