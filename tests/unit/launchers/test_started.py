"""Processes that a launcher starts: a run of two, one rank that fails, one that is killed and begun again."""

import shlex
import signal
import subprocess
import sys
import time

import pytest

from invariants.whole_runs import digests, make, metrics
from tunesmith import launching
from tunesmith.errors import FOLDER_OF_ERRORS, first_error, left_to_launcher
from tunesmith.launchers.deepspeed import DeepSpeed
from tunesmith.launchers.local import Local
from tunesmith.launchers.torchrun import Torchrun

OBJECTIVE = """
import os, signal
from tunesmith.objectives.sft import SFT

class Failing(SFT):
    steps: int = 0

    def loss(self, scores, batch):
        Failing.calls = getattr(Failing, "calls", 0) + 1
        names = ("TORCHELASTIC_RESTART_COUNT", "TUNESMITH_RESTART_COUNT")
        first = all(os.environ.get(name, "0") == "0" for name in names)
        if os.environ.get("RANK", "1") == "1" and first and Failing.calls > {after}:
            {how}
        return super().loss(scores, batch)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two words")
    return make(folder)


def train(recipe, out, *words):
    """What `tunesmith train` by two processes returns, its code and what it said."""
    said = ["launcher=torchrun", "launcher.nproc_per_node=2", "train.device=cpu", f"train.output_dir={out}"]
    command = [sys.executable, "-m", "tunesmith", "train", str(recipe), *said, "eval={}", "data.eval=0", *words]
    return subprocess.run(command, capture_output=True, text=True)


def failing(folder, how, after=0):
    (folder / "failing.py").write_text(OBJECTIVE.format(how=how, after=after))
    return f"objective={folder / 'failing.py'}"


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A run that nothing disturbs, and what was said."""
    out = tmp_path_factory.mktemp("whole") / "out of two"
    return out, train(recipe, out, "train.max_steps=5", "--json")


@pytest.mark.slow
def test_two_processes_by_torchrun(whole):
    out, done = whole
    assert done.returncode == 0, done.stderr
    first, *told = done.stderr.splitlines()
    words = shlex.split(first)
    assert words[3:5] == ["-m", "torch.distributed.run"] and f"train.output_dir={out}" in words
    assert len(done.stdout.splitlines()) == 1  # of all ranks, one prints the summary
    assert len(metrics(out)) == 5 and not any("torch/distributed" in line for line in told)


@pytest.mark.slow
def test_what_failed_first_is_said_once(recipe, tmp_path):
    done = train(recipe, tmp_path / "out", failing(tmp_path, 'raise ValueError("no such luck")'))
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert errors == ["error: rank 1: ValueError: no such luck (unexpected; -v shows the traceback)"]
    assert "Traceback" not in done.stderr and "=====" not in done.stderr


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(recipe, whole, tmp_path):
    killed = tmp_path / "killed"
    words = ("launcher.max_restarts=1", "train.max_steps=5", "train.save_steps=2")
    done = train(recipe, killed, failing(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", after=3), *words)
    assert done.returncode == 0, done.stderr
    assert f"going on with {killed} at step 2" in done.stderr
    why = ("rank 1 of its machine ended with signal SIGKILL", "rank 0: another rank is gone and left no word")
    assert any(f"error: {one}" in done.stderr for one in why) and "Traceback" not in done.stderr
    assert metrics(killed) == metrics(whole[0]) and digests(killed / "final") == digests(whole[0] / "final")


def alone(recipe, out, *words):
    """What `tunesmith train` by one process returns, its code and what it said."""
    said = ["train.device=cpu", f"train.output_dir={out}", "train.max_steps=5", "train.save_steps=2", *words]
    command = [sys.executable, "-m", "tunesmith", "train", str(recipe), *said, "eval={}", "data.eval=0"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_one_process_is_begun_again_too(recipe, tmp_path):
    killing = failing(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", after=3)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert alone(recipe, whole).returncode == 0
    done = alone(recipe, killed, "launcher.max_restarts=2", killing)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: the command ended with signal SIGKILL") == 1
    assert done.stderr.count("begun again, 1 of 2 times") == 1 and "2 of 2" not in done.stderr
    assert f"going on with {killed} at step 2" in done.stderr
    assert metrics(killed) == metrics(whole) and digests(killed / "final") == digests(whole / "final")


def test_what_fails_before_there_is_a_run_is_not_begun_again(tmp_path, capfd):
    script = Script(text="raise SystemExit(7)", max_restarts=2)
    assert launching.start(script, [], str(tmp_path)) == 7
    assert "begun again" not in capfd.readouterr().err
    (tmp_path / "recipe.yaml").write_text("")
    text = "import os; raise SystemExit(int(os.environ.get('TUNESMITH_RESTART_COUNT', '0')) < 2 and 7)"
    assert launching.start(Script(text=text, max_restarts=2), [], str(tmp_path)) == 0
    assert capfd.readouterr().err.count("error: the command ended with exit code 7") == 2


def test_runs_that_begin_again_have_a_folder():
    with pytest.raises(launching.RecipeError, match="train.output_dir: with launcher.max_restarts=1 a run that failed"):
        launching.start(Torchrun(max_restarts=1), ["train", "quickstart"], "")


class Script(Local):
    """Runs a Python text, which a process of a launcher could be."""

    text: str

    def command(self, arguments):
        return [sys.executable, "-c", self.text]


@pytest.mark.parametrize(("text", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_code_is_the_childs(text, code, capfd):
    assert launching.start(Script(text=text), [], "") == code
    said = capfd.readouterr().err.splitlines()[-1]
    assert said == f"error: the command ended with {'exit code 7' if code == 7 else 'signal SIGKILL'}"


WAITS = """
import signal, sys, time
def told(number, frame):
    print("saved", file=sys.stderr)
    sys.exit(3)
signal.signal(signal.SIGTERM, told)
print("here", file=sys.stderr, flush=True)
time.sleep(60)
"""


def test_signals_are_passed_on():
    text = f"""
import sys
from tunesmith import launching
from tunesmith.launchers.local import Local
class Script(Local):
    def command(self, arguments):
        return [sys.executable, "-c", {WAITS!r}]
sys.exit(launching.start(Script(), [], ""))
"""
    with subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stderr is not None
        while parent.stderr.readline() != "here\n":
            assert parent.poll() is None
        begun = time.monotonic()
        parent.send_signal(signal.SIGTERM)
        assert parent.wait() == 128 + signal.SIGTERM and time.monotonic() - begun < 30
        assert parent.stderr.read() == "saved\n"


def test_a_program_that_is_not_there(tmp_path):
    class Missing(Local):
        def command(self, arguments):
            return ["no-such-program"]

    with pytest.raises(launching.RunError, match="no program 'no-such-program' on this machine: run the line above"):
        launching.start(Missing(), [], "")


def test_the_first_error_of_the_newest_attempt_is_kept(tmp_path, monkeypatch):
    assert not left_to_launcher("nobody listens")
    monkeypatch.setenv(FOLDER_OF_ERRORS, str(tmp_path))
    assert first_error(tmp_path) is None
    for rank, attempt, message in (("1", "0", "a"), ("0", "0", "b"), ("3", "1", "c"), ("2", "1", "d")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        assert left_to_launcher(message)
        assert first_error(tmp_path) == {"0": "rank 1: a", "1": "rank 3: c"}[attempt]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert left_to_launcher("RuntimeError: Connection closed by peer")
    lost = "rank 2: another rank is gone and left no word (-v shows what it saw of it)"
    assert first_error(tmp_path) == lost
    assert left_to_launcher("e") and first_error(tmp_path) == "rank 2: e"


def heard(tmp_path, capsys, lines, code=1, launcher=None):
    ear = launching.Heard(launcher or Torchrun(nproc_per_node=2), tmp_path, verbose=False)
    for line in lines:
        ear.hear(line + "\n")
    ear.end(code)
    return capsys.readouterr().err.splitlines()


OWN = "E1129 13:40:00.123000 12345 torch/distributed/elastic/multiprocessing/api.py:984] "
WALL = [
    "Traceback (most recent call last):",
    '  File "/x/torch/distributed/run.py", line 9',
    "    main()",
    "{}",
    "===",
]


def test_a_rank_that_could_say_nothing(tmp_path, capsys):
    lines = ["step 1", OWN + "failed (exitcode: -9) local_rank: 1 (pid: 7) of binary: python", *WALL]
    assert heard(tmp_path, capsys, lines) == [
        "step 1",
        "error: rank 1 of its machine ended with signal SIGKILL, as the system ends one when memory runs out",
    ]


def test_a_process_of_deepspeed_that_could_say_nothing(tmp_path, capsys):
    """As DeepSpeed's launch.py logs it (`sigkill_handler`), without a rank where it is told to hand none on."""
    line = "[2026-11-29 13:40:00,123] [{}] [launch.py:{}] {}"
    command = ["/x/bin/python", "-u", "-m", "tunesmith", "train", "quickstart"]
    lines = [
        "step 1",
        line.format("INFO", "319:sigkill_handler", "Killing subprocess 4711"),
        line.format("ERROR", "325:sigkill_handler", f"{command} exits with return code = -9"),
    ]
    assert heard(tmp_path, capsys, lines, 247, DeepSpeed()) == [
        "step 1",
        "error: a process ended with signal SIGKILL, as the system ends one when memory runs out",
    ]


def test_who_is_gone_is_told_and_not_who_misses_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(FOLDER_OF_ERRORS, str(tmp_path))
    monkeypatch.setenv("RANK", "0")
    assert left_to_launcher("RuntimeError: [/x/pair.cc:537] Read error [127.0.0.1]:3: Connection reset by peer")
    lines = [OWN + "failed (exitcode: -11) local_rank: 1 (pid: 7) of binary: python"]
    assert heard(tmp_path, capsys, lines) == ["error: rank 1 of its machine ended with signal SIGSEGV"]
    (found,) = heard(tmp_path, capsys, [])
    assert found == "error: rank 0: another rank is gone and left no word (-v shows what it saw of it)"


def test_torchrun_itself_fails(tmp_path, capsys):
    lines = [line.format("DistNetworkError: no such host") for line in WALL]
    assert heard(tmp_path, capsys, lines[:4]) == [
        "error: the command ended with exit code 1: DistNetworkError: no such host"
    ]


def test_a_traceback_of_a_process_is_told(tmp_path, capsys):
    lines = ["Traceback (most recent call last):", '  File "mine.py", line 1', "KeyError: 3", "more"]
    assert heard(tmp_path, capsys, lines)[:4] == lines
