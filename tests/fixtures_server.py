"""A server on loopback in a thread, or as a process, and the official client of it."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time

import openai

import fixtures_models
from tunesmith.generate.alone import Alone
from tunesmith.generate.engine import Generator
from tunesmith.serve.options import Serving
from tunesmith.serve.served import Served
from tunesmith.serve.server import Server

CONTEXT = 512  # of the served models


class Running:
    """A server that listens."""

    def __init__(self, server, served, address, lines):
        self.served, self.address, self._lines, self._clients = served, address, lines, {}
        self._server = server

    @property
    def connections(self):
        """Those that are open."""
        return self._server.server_state.connections

    @property
    def lines(self):
        """What it has logged."""
        return [json.loads(line) for line in self._lines]

    def client(self, key="none"):
        if key not in self._clients:
            self._clients[key] = openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=60)
        return self._clients[key]

    def close(self):
        for client in self._clients.values():
            client.close()


def scripted(monkeypatch, running, text):
    """Make the model of a server say this text, and then end its turn."""
    worker = running.served.worker  # an answer of before is none of this decoder's
    until(lambda: worker.num_running == worker.num_waiting == 0)
    fixtures_models.scripted(monkeypatch, running.served.generator.tokenizer(text, verbose=False)["input_ids"])
    monkeypatch.setattr(worker.batch, "decoder", Generator.decoder)


@contextlib.contextmanager
def running(served):
    """A served model, listening."""
    lines = []
    server = Server(served, lines.append, port=0)
    thread = threading.Thread(target=server.run)
    served.start()
    thread.start()
    until(lambda: server.started)
    host, port = server.servers[0].sockets[0].getsockname()
    found = Running(server, served, f"http://{host}:{port}", lines)
    try:
        yield found
    finally:
        found.close()
        server.should_exit = True
        thread.join()
        served.close()


def served(model=None, tokenizer=None, alone=True, **options):
    """A tiny model to be served, of which one answer is made at a time."""
    model = fixtures_models.tiny_model(max_position_embeddings=CONTEXT) if model is None else model
    tokenizer = fixtures_models.tiny_tokenizer() if tokenizer is None else tokenizer
    generator = Generator(model, tokenizer, Alone(model) if alone else None)
    return Served(Serving(**options), "tiny", generator=generator)


@contextlib.contextmanager
def process(*words, **environment):
    """`tunesmith serve` as a process: it, its address, and what it said so far."""
    command = [sys.executable, "-m", "tunesmith", "serve", *words, "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, env=os.environ | environment, **pipes)
    try:
        said = child.stderr.readline()
        found = re.search(r"at (http://\S+)/v1", said)
        assert found, said + child.stderr.read()
        until(lambda: _answers(found[1]), 30)
        yield child, found[1], said
    finally:
        child.kill()
        child.communicate()


def _answers(address):
    import httpx

    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.ConnectError:
        return False


def until(true, seconds=30.0):
    """Wait for something to happen."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
