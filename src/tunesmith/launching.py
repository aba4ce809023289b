"""Processes that another program starts: its command is printed, its end is ours, and what failed first is said once.

A process that fails writes why to a folder that is named in its environment (`errors.left_to_launcher`), so that of
many ranks, most of which fail because one did, the first is heard. What the program says of its own affairs is left
out, but with `-v`.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from tunesmith import atomic, extras
from tunesmith.component import Component, name_of
from tunesmith.errors import FOLDER_OF_ERRORS, JOB, LOST, RESTART_COUNT, RecipeError, RunError, first_error
from tunesmith.explain import choose
from tunesmith.recipe_text import read_words

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TUNESMITH = ("-m", "tunesmith")
OUT_OF_MEMORY = ", as the system ends one when memory runs out"


class Launcher(Component):
    """Starts the processes of a run: `launcher=torchrun` is said beside a recipe's words, and is no part of it."""

    seam: ClassVar[str] = "launchers"
    default: ClassVar[str] = "local"
    own_lines: ClassVar[str] = r"(?!)"  # a regular expression of lines in which the program speaks of itself
    extra: ClassVar[str | None] = None  # of this package, which brings the program
    prefix: ClassVar[str] = ""  # of the beginning of a line, which is left out: who says it
    failed_line: ClassVar[str] = (
        r"(?!)"  # of these, one that says which rank ended: groups code and, if it is said, rank
    )
    own_files: ClassVar[str] = r"(?!)"  # of files in a traceback that is the program's own: nothing follows it

    @abstractmethod
    def command(self, arguments: Sequence[str]) -> list[str]:
        """The words of the command that runs `tunesmith ARGUMENTS` in every process."""

    def files(self, arguments: Sequence[str]) -> dict[str, str]:
        """The text of each file that the command reads, by its path."""
        return {}

    def problem(self) -> str | None:
        """Why the command cannot be run on this machine, and what can be done; None where it seems to."""
        return None

    def begins_again(self) -> bool:
        """Whether a run that failed is begun again, and goes on from its last checkpoint."""
        return self.restarts() > 0

    def restarts(self) -> int:
        """How often we run the command again where it failed; 0 of programs that see to it themselves."""
        return 0


def split(words: Sequence[str]) -> tuple[Launcher | None, list[str]]:
    """The launcher that some words say, and the other words. Raises RecipeError."""
    said = [word for word in words if word.startswith(("launcher=", "launcher."))]
    if not said:
        return None, list(words)
    try:
        launcher = choose(Launcher, read_words({}, said)["launcher"])
    except RecipeError as error:
        lines = (line if line.startswith("launcher") else f"launcher.{line}" for line in str(error).splitlines())
        raise RecipeError("\n".join(lines)) from None
    assert isinstance(launcher, Launcher)
    return launcher, [word for word in words if word not in said]


def start(launcher: Launcher, arguments: Sequence[str], output_dir: str, verbose: bool = False) -> int:
    """Run `tunesmith ARGUMENTS` by a launcher to its end. Returns the command's exit code, 128 + a signal's number.

    Raises:
        RecipeError: runs that are begun again need a folder that is known.
        MissingExtra: what brings the command is not installed.
        RunError: the command is not there.
    """
    if launcher.begins_again() and not output_dir:
        raise RecipeError(
            f"train.output_dir: with {_said_again(launcher)} a run that failed goes on in its folder, which must be "
            "known beforehand: say train.output_dir=FOLDER"
        )
    if launcher.extra is not None:
        extras.need(f"launcher={name_of(launcher)}", launcher.extra)
    problem = launcher.problem()
    if problem is not None:
        raise RecipeError(problem)
    for path, text in launcher.files(arguments).items():
        _tell(f"wrote {path}{_written(Path(path), text)}\n")
    command = launcher.command(arguments)
    _tell(f"{shlex.join(command)}\n")
    job, run = uuid.uuid4().hex, Path(output_dir).expanduser() / "recipe.yaml"
    was_there = run.is_file()
    for number in range(launcher.restarts() + 1):
        if number:
            _tell(f"begun again, {number} of {launcher.restarts()} times\n")
        code, stopped = _attempt(launcher, command, {JOB: job, RESTART_COUNT: str(number)}, verbose)
        if not code or stopped or not run.is_file():
            break  # what fails before there is a run fails again
    if code and not stopped and output_dir and run.is_file() and not was_there:
        _tell(f"go on with: tunesmith train {shlex.quote(output_dir)}\n")
    return code


def _written(file: Path, text: str) -> str:
    """Write a file; what is to be said of another one that was there, and is kept beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_bytes() if file.exists() else text.encode()
    kept = next(one for number in count(1) if not (one := file.with_name(f"{file.name}.{number}")).exists())
    if before != text.encode():
        atomic.write(kept, before)
    atomic.write(file, text.encode())
    return "" if before == text.encode() else f"; the one that was there is {kept} now"


def _said_again(launcher: Launcher) -> str:
    """The option by which runs are begun again, as it was said."""
    said = launcher.model_dump(mode="json", exclude_unset=True)
    again = [f"launcher.{name}={said[name]}" for name in ("max_restarts", "requeue", "nnodes") if said.get(name)]
    return again[0] if again else f"launcher={name_of(launcher)}"


def _attempt(launcher: Launcher, command: Sequence[str], said: dict[str, str], verbose: bool) -> tuple[int, bool]:
    """Run a command to its end: its exit code, and whether a signal that was passed on stopped it."""
    told = said if launcher.restarts() else {}  # others have a name of their own for it
    with tempfile.TemporaryDirectory(prefix="tunesmith-errors-") as errors:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C is then passed on by us alone, once
                text=True,
                errors="replace",
                env={**os.environ, **told, FOLDER_OF_ERRORS: errors},
            )
        except FileNotFoundError:
            raise RunError(
                f"there is no program {command[0]!r} on this machine: run the line above where it is"
            ) from None
        with _passing_on(child) as received:
            heard = Heard(launcher, Path(errors), verbose)
            heard.follow(child)
            code = child.wait()
        if code and not received:
            heard.end(code)
    if received:
        return 128 + received[0], True
    return (code if code >= 0 else 128 - code), False


@contextmanager
def _passing_on(child: "subprocess.Popen[str]") -> Iterator[list[int]]:
    """A block in which signals to this process go to the child; gives the numbers of those that came."""
    received: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Heard:
    """Listens to the processes and the program that starts them: the former's lines and one error are told."""

    def __init__(self, launcher: Launcher, errors: Path, verbose: bool) -> None:
        self.launcher, self.errors, self.verbose = launcher, errors, verbose
        self.told: set[str] = set()  # errors
        self.failure = ""  # as the program last told it
        self.traceback: list[str] = []  # one that is not over
        self.over = False  # the program says why it ends

    def follow(self, child: "subprocess.Popen[str]") -> None:
        """Tell the lines of a child until it has closed them."""
        assert child.stderr is not None
        with child.stderr:
            for line in child.stderr:
                self.hear(line)
        self._let_go()

    def hear(self, line: str) -> None:
        """Tell a line of the processes, and what a line of the program means."""
        if self.verbose:
            _tell(line)
        failed = re.search(self.launcher.failed_line, line)
        if failed is not None:
            self._failed(failed.groupdict().get("rank"), int(failed["code"]))
        if self.verbose or self.over or re.search(self.launcher.own_lines, line):
            return
        line = re.sub(self.launcher.prefix, "", line)
        if self.traceback or line.startswith("Traceback "):
            self.traceback.append(line)
            if len(self.traceback) > 1 and not line.startswith((" ", "\n")):
                self._let_go()
            return
        _tell(line)

    def _failed(self, rank: str | None, code: int) -> None:
        """Tell why a process ended that the program says ended first: by its own word, or by a signal."""
        who = "a process" if rank is None else f"rank {rank} of its machine"
        self.failure = f"{who} ended with {_ending(code)}"
        said = first_error(self.errors)
        if code < 0 and (said is None or LOST in said):
            self.told.add(self.failure)
            _tell(f"error: {self.failure}{OUT_OF_MEMORY if code == -signal.SIGKILL else ''}\n")
        elif not self._tell_error() and self.launcher.begins_again():
            _tell(f"error: {self.failure}\n")

    def _let_go(self) -> None:
        """Tell a traceback that is over, if it is of a process; after the program's own there is nothing to tell."""
        self.over |= any(re.search(self.launcher.own_files, line) for line in self.traceback)
        if self.over and self.traceback and not self.failure:
            self.failure = self.traceback[-1].strip()
        if not self.over:
            _tell("".join(self.traceback))
        self.traceback = []

    def end(self, code: int) -> None:
        """Tell why the command failed, where nothing was told yet."""
        self._tell_error()
        if not self.told:
            said = f": {self.failure}" if self.failure else ""
            _tell(f"error: the command ended with {_ending(code)}{said}\n")

    def _tell_error(self) -> bool:
        """Tell the error of the rank that failed first in this attempt, once; whether there is one."""
        found = first_error(self.errors)
        lost = found is not None and LOST in found and bool(self.told)  # it is told who is gone
        if found is not None and found not in self.told and not lost:
            self.told.add(found)
            _tell("".join(f"error: {line}\n" for line in found.splitlines()))
        return found is not None


def _tell(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _ending(code: int) -> str:
    """An exit code, or the name of the signal that it stands for."""
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
