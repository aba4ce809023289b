"""Rendering processes: they end with their parent, whatever ends it."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

import fixtures_chats
from tunesmith.data.workers import Workers
from tunesmith.errors import DataError
from tunesmith.formats.messages import Messages

SCRIPT = """
import multiprocessing, time
import fixtures_chats
from tunesmith.data.workers import Workers
from tunesmith.formats.messages import Messages

if __name__ == "__main__":
    workers = Workers(fixtures_chats.renderer(), 2)
    row = ("rows:1", fixtures_chats.chat("so?", "so"))
    (one,) = workers.submit([row], Messages())()
    assert len(one.branches) == 1
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


def is_running(pid):
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_rows_that_cannot_go_to_another_process_are_named():
    deep = []
    for _ in range(sys.getrecursionlimit() - 100):  # which torch's compiler raises
        deep = [deep]
    with contextlib.closing(Workers(fixtures_chats.renderer(), 2)) as workers:
        rendered = workers.submit([("rows:1", fixtures_chats.chat("so?", "so") | {"x": deep})], Messages())
        with pytest.raises(DataError, match=r"^rows:1 or a row after it has .* too deep .*data\.num_processes=1$"):
            rendered()


def test_a_process_that_is_ended_from_outside_is_said():
    row = ("rows:1", fixtures_chats.chat("so?", "so"))
    with contextlib.closing(Workers(fixtures_chats.renderer(), 2)) as workers:
        workers.submit([row], Messages())()
        for child in multiprocessing.active_children():
            child.kill()
        with pytest.raises(DataError, match=r"^a process that renders rows:1 and what follows was ended from outside"):
            workers.submit([row], Messages())()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_no_process_outlives_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join(part for part in sys.path if part)
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert children and all(map(is_running, children))
    for pid in children:
        os.kill(pid, signal.SIGINT)  # as a terminal's Ctrl-C, which the parent alone answers
    time.sleep(0.3)
    assert all(map(is_running, children))
    parent.kill()
    parent.communicate()
    limit = time.monotonic() + 20
    while any(map(is_running, children)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(map(is_running, children))
