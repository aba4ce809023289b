"""What a stream costs: memory that does not grow with the rows, and rendering that waits for nobody."""

import contextlib
import threading
import time
import tracemalloc

import fixtures_models
from fixtures_chats import chat, recipe
from tunesmith.data import blocks, reader
from tunesmith.data.load import load_rows

TOKENIZER = fixtures_models.tiny_tokenizer()


def peak(number):
    """The most memory in bytes that Python objects took while so many rows were streamed."""

    class Rows:
        def __iter__(self):
            return iter(chat(f"question {n}", "answer " * 10) for n in range(number))

    train = {"max_steps": 10**6, "row_tokens": 2000}
    options = recipe("no file", train=train, streaming=True, buffer_samples=32)
    tracemalloc.start()
    with contextlib.closing(load_rows(options, TOKENIZER, Rows())) as rows:
        at = 0
        while not rows.train.block.end.epoch:
            rows.train[at]
            at += 1
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_rows(monkeypatch):
    monkeypatch.setattr(reader, "CHUNK_ROWS", 32)
    peak(100)  # what is loaded once
    assert peak(800) < 1.2 * peak(200)


def test_the_next_block_is_rendered_while_one_is_used_and_not_after_the_end(monkeypatch):
    made = []
    make = blocks.Blocks.make

    def slow(self, start):
        made.append((start.block, threading.current_thread() is threading.main_thread()))
        return make(self, start)

    monkeypatch.setattr(blocks.Blocks, "make", slow)
    chats = [chat(f"question {n}", f"answer {n}") for n in range(48)]
    said = recipe("no file", train={"max_steps": 12, "row_tokens": 90}, streaming=True, buffer_samples=16)
    loaded = load_rows(said, TOKENIZER, chats)
    rows = loaded.train
    limit = time.monotonic() + 20
    while len(made) < 2 and time.monotonic() < limit:
        time.sleep(0.01)
    assert made == [(0, False), (1, False)]  # the second before it is asked for
    for _ in rows:
        pass
    time.sleep(0.3)  # in which one more would begin
    loaded.close()
    last = rows.block.end.block
    assert [block for block, _ in made] == list(range(last)) and rows.block.end.packed_rows >= 12
