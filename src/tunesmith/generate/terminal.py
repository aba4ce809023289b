"""`tunesmith chat` as a program: it opens the models, reads lines from a person or a pipe, and ends with the input."""

import contextlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from tunesmith.errors import RunError
from tunesmith.generate.addressed import Addressed, answering
from tunesmith.generate.asked import Chatting
from tunesmith.generate.chat import Chat
from tunesmith.generate.engine import Generator
from tunesmith.generate.load import other_of
from tunesmith.generate.voice import Voice

if TYPE_CHECKING:
    from rich.console import Console


def chat(
    path: str,
    system: str | None = None,
    how: Chatting = Chatting(),  # noqa: B008  # it is frozen
    against: str | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    console: "Console | None" = None,
    notes: "Console | None" = None,
    lines: TextIO | None = None,
) -> bool:
    """Chat with what `path` names (see `Generator.open`) until the person leaves or the input ends.

    It may be the address of a server too, which is asked as `how.server` says.

    `against` is another model that answers the same messages, `base` that of an adapter. `console` shows the answers
    (None: stdout), `notes` the program's own words (None: stderr), and `lines` is read instead of stdin.

    Whether all was done that was asked: a person was told what was not, and a program is told by the exit status.

    Raises:
        RunError, ModelError: a model cannot be opened, or what is no person says what is no text.
    """
    from rich.console import Console

    source = lines or sys.stdin
    out, notes = console or Console(), notes or Console(stderr=True)
    names = [path] if against is None else [path, other_of(path, against)]
    voices = []
    for name in names:
        with notes.status(f"loading {name}") if notes.is_terminal else contextlib.nullcontext():
            voices.append(Voice(name, answering(name, how.server, how.device)))
    session = Chat(voices, out, notes, system, how.sampling(), tools)
    for voice in voices:
        session.say(f"{voice.name}: {_described(voice.generator)}. /help lists the commands, Ctrl-D leaves.")
    person = source.isatty()
    for line in _typed(session) if person else _piped(source):
        session.take(line)
        if not session.open:
            break
    else:
        if not person:
            session.end()
    return person or not session.failed


def _described(generator: Generator | Addressed) -> str:
    if isinstance(generator, Addressed):
        return f"the model {generator.name} of a server"
    model = generator.model
    size = model.num_parameters() / 1e6
    return f"{size:,.1f} M parameters, {str(model.dtype).removeprefix('torch.')} on {model.device.type}"


def _piped(source: TextIO) -> Iterator[str]:
    """The lines of what is no person. Raises RunError at the first that is no text."""
    if isinstance(source, io.TextIOWrapper):
        source.reconfigure(errors="surrogateescape")  # so that the line is known that other bytes stand in
    for number, line in enumerate(source, 1):
        try:
            line.encode()
        except UnicodeEncodeError as error:
            found = line[error.start : error.end].encode(errors="surrogateescape")
            raise RunError(
                f"line {number} of the input is not UTF-8: it holds the bytes {found[:16]!r}. Write it as UTF-8"
            ) from None
        yield line.rstrip("\r\n")


def _typed(session: Chat) -> Iterator[str]:
    """What a person types, line by line, with the line editing and history of readline where there is one."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # importing it is what gives input() its line editing
    while True:
        try:
            yield input(". " if session.goes_on else "> ")
        except KeyboardInterrupt:
            session.say("\n(Ctrl-D or /quit leaves)")
        except EOFError:
            session.say("")
            return
