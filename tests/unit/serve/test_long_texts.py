"""A text that takes a tokenizer long keeps nobody waiting but the others that do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import fixtures_server
from tunesmith.serve import served as of_served

LONG, SHORT = "The river runs to the sea. " * 16, "The river"
BYTES = 300  # of a request that is long here
BODIES = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}], "max_tokens": 3},
    "/v1/completions": lambda text: {"prompt": text, "max_tokens": 3, "temperature": 0},
    "/v1/embeddings": lambda text: {"input": text},
}


class Cutting:
    """A server whose tokenizer is held by each long text until it is let go."""

    def __init__(self, server, monkeypatch):
        self.server, self.held, self.free, self.texts = server, threading.Event(), threading.Event(), []
        for name in ("conversation", "tokens"):
            whole = getattr(of_served.Served, name)
            monkeypatch.setattr(of_served.Served, name, lambda served, *given, of=whole: self.cut(served, of, given))

    def cut(self, served, whole, given):
        self.texts.append(str(given))
        if LONG in str(given):
            self.held.set()
            assert self.free.wait(60)
        return whole(served, *given)

    def post(self, path, text):
        return httpx.post(f"{self.server.address}{path}", json=BODIES[path](text), timeout=20)


@pytest.fixture
def cutting(monkeypatch):
    monkeypatch.setattr(of_served, "LONG_BYTES", BYTES)
    with fixtures_server.running(fixtures_server.served()) as server:
        made = Cutting(server, monkeypatch)
        try:
            yield made
        finally:
            made.free.set()


@pytest.mark.parametrize("path", list(BODIES))
def test_short_texts_do_not_wait_for_a_long_one(path, cutting):
    with ThreadPoolExecutor() as pool:
        long = pool.submit(cutting.post, path, LONG)
        assert cutting.held.wait(20)
        try:
            for other in BODIES:
                assert cutting.post(other, SHORT).status_code == 200
            assert not long.done()
        finally:
            cutting.free.set()
        assert long.result().status_code == 200


def test_a_long_text_of_a_client_that_has_gone_is_not_cut(cutting):
    path = "/v1/completions"
    with ThreadPoolExecutor() as pool:
        first = pool.submit(cutting.post, path, LONG)
        assert cutting.held.wait(20)
        with pytest.raises(httpx.ReadTimeout):  # it waits for the first, and goes
            httpx.post(f"{cutting.server.address}{path}", json=BODIES[path](f"gone {LONG}"), timeout=0.5)
        fixtures_server.until(lambda: any(line["status"] == 499 for line in cutting.server.lines))
        cutting.free.set()
        assert first.result().status_code == cutting.post(path, LONG).status_code == 200
    assert not any("gone" in text for text in cutting.texts)


def test_two_threads_cut_texts_as_one_does():
    tokenizer = fixtures_server.served().speakers["tiny"].tokenizer
    texts = [f"{number} rivers run to the sea; 你好 🙂. " * 200 for number in range(24)]
    alone = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: tokenizer(text, verbose=False)["input_ids"], texts * 4))
    assert together == alone * 4
