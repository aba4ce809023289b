"""Many clients of a server at once, for a while: errors, tokens a second, memory, and what becomes of who goes.

    python benchmarks/serve.py
    python benchmarks/serve.py --model DIR --clients 64 --seconds 120 --new-tokens 64

`tunesmith serve` runs in a process of its own. Clients stream one answer behind the other: first one alone, then all.
Then all of them are cut off in the middle of an answer, and at last the server is told to end while they read. It fails
when a request failed, memory grew by more than `--most-growth` of itself since the warm-up, a place was not given
back, or a last answer not finished.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

import measure

COLUMNS = ("measured", "is")
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
SAMPLES = 12  # of the memory
GONE_SECONDS = 30.0  # in which what is cut off must be given up


@dataclass
class Load:
    """What some clients saw."""

    seconds: float = 0.0
    requests: int = 0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # seconds to the first piece of an answer
    memory: list[int] = field(default_factory=list)  # bytes of the server, every now and then

    @property
    def speed(self) -> float:
        """Tokens a second of all."""
        return self.tokens / self.seconds


class Server:
    """`tunesmith serve` as a process."""

    def __init__(self, child: "subprocess.Popen[str]", address: str, new_tokens: int, end: int) -> None:
        self.child, self.address, self.new_tokens, self.end = child, address, new_tokens, end
        self._process, self._numbers = psutil.Process(child.pid), itertools.count()

    @property
    def memory(self) -> int:
        """Bytes that it holds."""
        return self._process.memory_info().rss

    async def pieces(self, client: httpx.AsyncClient, new_tokens: int) -> AsyncIterator[dict[str, Any]]:
        """The chunks of one streamed answer to a question that nobody asked before. Raises RuntimeError."""
        draw = random.Random(next(self._numbers))
        words = " ".join(draw.choices(measure.SYLLABLES, k=draw.randint(5, 40)))
        body = {
            "messages": [{"role": "user", "content": f"What is {words}?"}],
            "max_tokens": new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logit_bias": {self.end: -100},  # all answers have the length that is asked
        }
        async with client.stream("POST", f"{self.address}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code}: {(await answer.aread()).decode()}")
            last = ""
            async for line in answer.aiter_lines():
                if line:
                    last = line.removeprefix("data: ")
                    if last != "[DONE]":
                        yield json.loads(last)
            if last != "[DONE]":
                raise RuntimeError(f"a stream ended with {last!r}")

    async def gauge(self, name: str) -> int:
        """A number of /metrics."""
        async with httpx.AsyncClient(verify=False) as client:
            text = (await client.get(f"{self.address}/metrics")).text
        return int(re.search(rf"^tunesmith_{name} (\d+)$", text, re.MULTILINE)[1])  # type: ignore[index]


@contextlib.contextmanager
def serving(model: str, clients: int, new_tokens: int) -> Iterator[Server]:
    """A server of a model with a place for each client."""
    from tunesmith.engine.model import load_tokenizer
    from tunesmith.recipe import Model

    end = load_tokenizer(Model(path=model)).eos_token_id
    command = [sys.executable, "-m", "tunesmith", "serve", model, "--port", "0", "--max-running", str(clients)]
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.PIPE, text=True)
        try:
            assert child.stderr is not None
            said = child.stderr.readline()
            found = re.search(r"at (http://\S+)/v1", said)
            if found is None:
                sys.exit(said + child.stderr.read())
            yield Server(child, found[1], new_tokens, end)
        finally:
            child.kill()
            child.communicate()


async def load(server: Server, clients: int, seconds: float, samples: int = 0) -> Load:
    """So many clients, each with one answer behind the other, for so long; then the last ones are read to their end."""
    found = Load()

    async def one(client: httpx.AsyncClient) -> None:
        while not found.requests or time.monotonic() - start < seconds:
            begun, first = time.monotonic(), True
            try:
                async for piece in server.pieces(client, server.new_tokens):
                    if first and piece["choices"] and piece["choices"][0]["delta"].get("content"):
                        found.first.append(time.monotonic() - begun)
                        first = False
                    found.tokens += (piece.get("usage") or {}).get("completion_tokens", 0)
            except (RuntimeError, httpx.HTTPError) as error:
                found.errors.append(f"{type(error).__name__}: {error}")
            found.requests += 1

    async def look() -> None:
        for _ in range(samples):
            await asyncio.sleep(seconds / samples)
            found.memory.append(server.memory)

    async with httpx.AsyncClient(timeout=300, limits=LIMITS) as client:
        start = time.monotonic()
        await asyncio.gather(look(), *(one(client) for _ in range(clients)))
        found.seconds = time.monotonic() - start
    return found


async def cut_off(server: Server, clients: int) -> float | None:
    """Seconds until nothing runs when all clients go in the middle of their answers; None: it did not come to that."""
    reading = [asyncio.ensure_future(_read(server)) for _ in range(clients)]
    await _until_running(server, reading)
    for one in reading:
        one.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    start = time.monotonic()
    while await server.gauge("running") or await server.gauge("waiting"):
        if time.monotonic() - start > GONE_SECONDS:
            return None
        await asyncio.sleep(0.01)
    return time.monotonic() - start


async def ended(server: Server, clients: int) -> tuple[int, int]:
    """How many of the answers that run are finished when the server is told to end, and how it ends."""
    reading = [asyncio.ensure_future(_read(server)) for _ in range(clients)]
    await _until_running(server, reading)
    server.child.send_signal(signal.SIGTERM)
    found = await asyncio.gather(*reading, return_exceptions=True)
    return sum(one is None for one in found), await asyncio.to_thread(server.child.wait, 60)


async def _read(server: Server) -> None:
    async with httpx.AsyncClient(timeout=300, verify=False) as client:
        async for _ in server.pieces(client, 4 * server.new_tokens):
            pass


async def _until_running(server: Server, reading: list["asyncio.Future[None]"]) -> None:
    """Wait until half of some answers are being made, or all of them were."""
    while await server.gauge("running") < max(1, len(reading) // 2) and not all(one.done() for one in reading):
        await asyncio.sleep(0.01)


async def measured(server: Server, how: argparse.Namespace) -> tuple[list[tuple[str, Any]], list[str]]:
    """The lines of the table, and what is wrong."""
    await load(server, 1, how.seconds / 30)
    alone = await load(server, 1, how.seconds / 8)
    await load(server, how.clients, how.seconds)  # pages, and oneDNN's code for each shape of a pass: bounded, and late
    warm = server.memory
    found = await load(server, how.clients, how.seconds, SAMPLES)
    growth = max(found.memory) / warm - 1
    freed = await cut_off(server, how.clients)
    finished, code = await ended(server, max(1, how.clients // 4))
    errors = [*alone.errors, *found.errors]
    wrong = [f"{len(errors)} requests failed, the first by {errors[0]}"] if errors else []
    if growth > how.most_growth:
        wrong.append(f"memory grew by {growth:.1%}")
    if freed is None:
        wrong.append(f"places were not given back in {GONE_SECONDS:.0f} s")
    if (finished, code) != (max(1, how.clients // 4), 0):
        wrong.append(f"{finished} answers were finished when the server was told to end, and it ended with {code}")
    late = statistics.quantiles(found.first, n=20) if len(found.first) > 1 else [0.0] * 19
    return [
        ("clients", how.clients),
        ("seconds", found.seconds),
        ("requests", found.requests),
        ("errors", len(errors)),
        ("tokens a second, one client", alone.speed),
        ("tokens a second, all", found.speed),
        ("times as many", found.speed / alone.speed),
        ("seconds to the first piece, one client, median", statistics.median(alone.first or [0.0])),
        ("seconds to the first piece, all, median", late[9]),
        ("seconds to the first piece, all, 95 %", late[18]),
        ("memory behind the warm-up, MB", warm / 1e6),
        ("memory since, MB", " ".join(f"{one / 1e6:.0f}" for one in found.memory)),
        ("growth, %", 100 * growth),
        ("seconds until all who were cut off were given up", freed),
        ("answers finished behind SIGTERM", f"{finished} of {max(1, how.clients // 4)}"),
    ], wrong


def main() -> None:
    """Measure, print the table, and fail where something is wrong."""
    parser = measure.parser(__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0, help="of all clients together")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of an answer at most")
    parser.add_argument("--most-growth", type=float, default=0.05, help="of the server's memory, as a share of it")
    how = parser.parse_args()
    with serving(how.model, how.clients, how.new_tokens) as server:
        rows, wrong = asyncio.run(measured(server, how))
    measure.report(f"{how.clients} clients of {how.model}", COLUMNS, rows, how.json)
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
