"""Command lines in processes of their own, forked from one that has imported the libraries: what is left of a start is
some milliseconds. Everything else is as in a shell: they can be killed, have their own signals, and end with a code."""

import os
import signal
import socket
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["fixtures_warm"])
SECONDS = 900  # after which something hangs, also on a busy machine


def _become(commands, said, environment, own_group):
    """In the new process: take the place of a shell's commands. `said` is the file of stdout and stderr."""
    os.environ |= environment
    if own_group:
        os.setsid()
    for number, flags in ((1, os.O_WRONLY | os.O_APPEND), (2, os.O_WRONLY | os.O_APPEND), (0, os.O_RDONLY)):
        os.dup2(os.open(said if number else os.devnull, flags), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # multiprocessing's is of its parent's
    from tunesmith.cli.main import main

    for words in commands:
        code = main([str(word) for word in words])
        if code:
            sys.exit(code)


class Process:
    """Command lines, one after the other, begun. What they say is in one file, whichever stream it went to."""

    def __init__(self, commands, environment=None, own_group=False):
        number, self._said = tempfile.mkstemp(prefix="tunesmith-command-")
        os.close(number)
        self._process = FORKS.Process(target=_become, args=(commands, self._said, environment or {}, own_group))
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send(self, number=signal.SIGKILL):
        os.kill(self.pid, number)

    def end(self):
        """Wait for its end: the exit code, and what it said."""
        self._process.join(SECONDS)
        code, said = self.poll(), Path(self._said).read_text()
        if code is None:
            self.send()
            raise AssertionError(f"it hangs; it said: {said}")
        os.unlink(self._said)
        return code, said

    def wait_for(self, condition):
        """Until something is so, or the command ended."""
        limit = time.monotonic() + SECONDS
        while not condition() and self.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.001)


class Command(Process):
    """`tunesmith WORDS`, begun."""

    def __init__(self, *words, own_group=False):
        super().__init__([words], own_group=own_group)


def succeed(*words):
    """Run a command line to its end, which is a good one: what it said."""
    code, said = Command(*words).end()
    assert code == 0, said
    return said


def together(number, *commands, code=0):
    """Run command lines, one after the other, in as many processes as torchrun would start: what all of them said.

    All of them end with a `code`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    places = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(number)]
    ranks = [Process(commands, {name: str(one) for name, one in place.items()}) for place in places]
    ended = [rank.end() for rank in ranks]
    said = "".join(text for _, text in ended)
    assert [own for own, _ in ended] == [code] * number, said
    return said
