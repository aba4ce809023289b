"""A chat in the terminal. What the model says goes to stdout; all that the program says goes to stderr.

So a pipe works as well as a person: `echo "Who are you?" | tunesmith chat runs/first` prints only the answer.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tunesmith import atomic
from tunesmith.errors import RunError, TunesmithError, near
from tunesmith.generate.engine import Generator

if TYPE_CHECKING:
    from rich.console import Console

# A model's text must not steer the terminal: every control character but newline and tab goes.
CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
HELP = """/system TEXT   set the system message; alone, show it
/reset         forget the conversation, keep the system message
/save FILE     write the conversation as a JSON row that data.train reads
/help          this text
/quit          leave; so does Ctrl-D. Ctrl-C stops an answer
A line that begins with a space is sent even if a / follows."""


class Chat:
    """A conversation with one model: its turns, and what the commands do to them.

    `out` is for the model's words, `notes` for the program's.
    """

    def __init__(
        self,
        generator: Generator,
        out: "Console",
        notes: "Console",
        system: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self.generator, self.out, self.notes = generator, out, notes
        self.system = system
        self.turns: list[dict[str, str]] = []
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
        self.open = True
        self.commands: dict[str, Callable[[str], None]] = {
            "/system": self._system,
            "/reset": self._reset,
            "/save": self._save,
            "/help": self._help,
            "/quit": self._quit,
        }

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation with its system message."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def take(self, line: str) -> None:
        """Do what one line says: a command, or a message to answer."""
        if line.startswith("/"):
            word, _, rest = line.strip().partition(" ")
            if word in self.commands:
                self.commands[word](rest.strip())
            else:
                self.say(f"there is no command {word}. {near(word, self.commands)}")
        elif line.strip():
            self._answer(line.strip())

    def say(self, text: str) -> None:
        """Tell the person something, apart from what the model says."""
        self.notes.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)

    def _answer(self, question: str) -> None:
        self.turns.append({"role": "user", "content": question})
        seed = None if self.seed is None else self.seed + len(self.turns)
        try:
            answer = self.generator.stream(
                self.messages, max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=seed
            )
        except TunesmithError as error:
            self.turns.pop()
            self.say(f"not sent: {error}")
            return
        if answer.prompt.dropped_turns:
            self.say(f"(the oldest {answer.prompt.dropped_turns} turns no longer fit the model's context)")
        said, start = "", time.perf_counter()
        try:
            for piece in answer:
                said += piece
                self._show(piece)
        except KeyboardInterrupt:
            self._show(" ...")
        finally:
            answer.close()
        self._show("\n")
        if said:
            self.turns.append({"role": "assistant", "content": said})
        else:
            self.turns.pop()
            self.say("(no answer: the question is not kept)")
        if answer.finish == "length":
            self.say(f"(cut at {len(answer.ids)} tokens; --max-new-tokens says how many)")
        elif self.out.is_terminal:
            self.say(f"({len(answer.ids)} tokens, {len(answer.ids) / (time.perf_counter() - start):.0f}/s)")

    def _show(self, piece: str) -> None:
        from rich.segment import Segment, Segments
        from rich.style import Style

        clean = piece.translate(CONTROLS) if self.out.is_terminal else piece
        # a bare segment, because rich's own printing of text turns tabs into spaces
        self.out.print(Segments([Segment(clean, Style(color="cyan"))]), end="", soft_wrap=True)
        self.out.file.flush()

    def _system(self, text: str) -> None:
        if text:
            self.system = text
        self.say(f"system message: {self.system or 'none'}")

    def _reset(self, _: str) -> None:
        self.turns = []
        self.say("the conversation is forgotten")

    def _save(self, name: str) -> None:
        if not name or not self.turns:
            self.say("say where: /save FILE" if self.turns else "there is nothing to save yet")
            return
        try:
            save(Path(name).expanduser(), self.messages)
        except (TunesmithError, OSError) as error:
            self.say(f"not saved: {error}")
        else:
            self.say(f"saved {len(self.messages)} messages in {name}")

    def _help(self, _: str) -> None:
        self.say(HELP)

    def _quit(self, _: str) -> None:
        self.open = False


def save(file: Path, messages: list[dict[str, str]]) -> None:
    """Write a conversation as one dataset row, whole or not at all: `.jsonl` as a line, else as a JSON list.

    Raises:
        RunError: there is something at that place.
        OSError: the folder is missing or cannot be written.
    """
    if file.exists():
        raise RunError(f"{file} exists: choose another name")
    row = {"messages": messages}
    lines = file.suffix == ".jsonl"
    text = json.dumps(row if lines else [row], ensure_ascii=False, indent=None if lines else 2)
    atomic.write(file, f"{text}\n".encode())


def chat(
    path: str,
    system: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    seed: int | None = 42,
    console: "Console | None" = None,
    notes: "Console | None" = None,
    lines: TextIO | None = None,
) -> None:
    """Chat with what `path` names (see `Generator.open`) until the person leaves or the input ends.

    `console` shows the answers (None: stdout), `notes` the program's own words (None: stderr), and `lines` is
    read instead of stdin.

    Raises:
        RunError, ModelError: the model cannot be opened.
    """
    from rich.console import Console

    source = lines or sys.stdin
    out, notes = console or Console(), notes or Console(stderr=True)
    with notes.status(f"loading {path}") if notes.is_terminal else contextlib.nullcontext():
        generator = Generator.open(path)
    session = Chat(generator, out, notes, system, max_new_tokens, temperature, seed)
    session.say(f"{path}: {_described(generator)}. /help lists the commands, Ctrl-D leaves.")
    for line in _typed(session) if source.isatty() else (line.rstrip("\r\n") for line in source):
        session.take(line)
        if not session.open:
            break


def _described(generator: Generator) -> str:
    model = generator.model
    size = model.num_parameters() / 1e6
    return f"{size:,.1f} M parameters, {str(model.dtype).removeprefix('torch.')} on {model.device.type}"


def _typed(session: Chat) -> Iterator[str]:
    """What a person types, line by line, with the line editing and history of readline where there is one."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # importing it is what gives input() its line editing
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            session.say("\n(Ctrl-D or /quit leaves)")
        except EOFError:
            session.say("")
            return
