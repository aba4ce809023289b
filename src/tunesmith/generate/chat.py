"""A chat in the terminal. What the model says goes to stdout; all that the program says goes to stderr.

So a pipe works as well as a person: `echo "Who are you?" | tunesmith chat runs/first` prints only the answer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import atomic
from tunesmith.errors import RunError, TunesmithError, near
from tunesmith.generate.asked import Sampling
from tunesmith.generate.voice import Turn, Voice
from tunesmith.recipe_text import parse_value, read_words

if TYPE_CHECKING:
    from rich.console import Console

# A model's text must not steer the terminal: every control character but newline and tab goes.
CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
BLOCK = '"""'
HELP = """/system TEXT   set the system message; alone, show it
/undo          take back the last message and its answer
/regenerate    answer the last message again: with other draws, where the temperature is above 0
/params a=b    set options of the answers, as in temperature=0.7; alone, show them
/tools FILE    let the model call the tools in a JSON file; alone, show them; none: take them away
/result TEXT   what a tool that the model called gave
/reset         forget the conversation, keep the system message
/save FILE     write the conversation as a JSON row that data.train reads
/help          this text
/quit          leave; so does Ctrl-D. Ctrl-C stops an answer
A line that ends with \\ goes on in the next one; lines between two lines of \"\"\" are one message.
A line that begins with a space is sent even if a / follows."""


class Chat:
    """A conversation with one model, or the same with two: its turns, and what the commands do to them.

    `out` is for the models' words, `notes` for the program's. `tools` are those that may be called.
    """

    def __init__(
        self,
        voices: Sequence[Voice],
        out: "Console",
        notes: "Console",
        system: str | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008  # it is frozen
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.voices, self.out, self.notes = list(voices), out, notes
        self.system, self.sampling, self.tools = system, sampling, list(tools)
        self.open = True
        self.failed = False  # whether anything that was said could not be done
        self._lines: list[str] = []  # of a message that goes on
        self._block = False  # whether they are between two lines of """
        self._again = 0  # how often the last message was answered anew
        self.commands: dict[str, Callable[[str], None]] = {
            "/system": self._system,
            "/undo": self._undo,
            "/regenerate": self._regenerate,
            "/params": self._params,
            "/tools": self._tools,
            "/result": self._result,
            "/reset": self._reset,
            "/save": self._save,
            "/help": self._help,
            "/quit": self._quit,
        }

    @property
    def turns(self) -> list[Turn]:
        """The conversation with the first of the models."""
        return self.voices[0].turns

    @property
    def messages(self) -> list[Turn]:
        """The conversation with its system message."""
        return [*self._beginning(), *self.turns]

    @property
    def goes_on(self) -> bool:
        """Whether the next line belongs to the last one."""
        return self._block or bool(self._lines)

    def take(self, line: str) -> None:
        """Do what one line says: a command, a message to answer, or a part of one."""
        if line.strip() == BLOCK:
            self._block = not self._block
        elif self._block:
            self._lines.append(line)
        elif line.endswith("\\"):
            self._lines.append(line[:-1])
            return
        elif self._lines:
            self._lines.append(line)
        elif line.startswith("/"):
            self._command(line)
            return
        elif line.strip():
            self._lines.append(line.strip())
        if not self._block:
            self.end()

    def end(self) -> None:
        """Send what is written of a message: nothing more of it comes."""
        message, self._lines, self._block = "\n".join(self._lines), [], False
        if message.strip():
            self._ask({"role": "user", "content": message})

    def say(self, text: str) -> None:
        """Tell the person something, apart from what the model says."""
        self.notes.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)

    def _fail(self, text: str) -> None:
        """Tell the person that something could not be done."""
        self.failed = True
        self.say(text)

    def _command(self, line: str) -> None:
        word, _, rest = line.strip().partition(" ")
        if word in self.commands:
            self.commands[word](rest.strip())
        else:
            self._fail(f"there is no command {word}. {near(word, self.commands)}")

    def _beginning(self) -> list[Turn]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _ask(self, turn: Turn) -> None:
        for voice in self.voices:
            voice.turns.append(turn)
        self._again = 0
        self._answer()

    def _answer(self) -> None:
        """Let each model answer; a message that none of them could be sent, or answered, is not kept."""
        seed = self.sampling.seed
        if seed is not None:
            seed += len(self.turns) + 1000 * self._again
        sampling = self.sampling.model_copy(update={"seed": seed})
        answered = False
        for voice in self.voices:
            if len(self.voices) > 1:
                self.say(f"{voice.name}:")
            try:
                turn = voice.answer(self._beginning(), sampling, self.tools, self._show, self.say, self.out.is_terminal)
            except TunesmithError as error:
                self._fail(f"not sent: {error}")
                continue
            answered = answered or bool(turn)
            if turn:
                voice.turns.append(turn)
        if not answered:
            for voice in self.voices:
                voice.turns.pop()
        elif calls := self._open_calls():
            self.say(f"(the model called {', '.join(calls)}: say what it gave by /result TEXT)")

    def _open_calls(self) -> list[str]:
        """The names of the tools that the first model called, and whose result is not said yet."""
        given = 0
        while given < len(self.turns) and self.turns[-1 - given]["role"] == "tool":
            given += 1
        before = self.turns[-1 - given] if given < len(self.turns) else {}
        return [call["function"]["name"] for call in before.get("tool_calls", ())[given:]]

    def _show(self, piece: str, dim: bool = False) -> None:
        from rich.segment import Segment, Segments
        from rich.style import Style

        if dim and not self.out.is_terminal:  # a program that reads the answers wants no thoughts among them
            self.say(piece)
            return
        clean = piece.translate(CONTROLS) if self.out.is_terminal else piece
        # a bare segment, because rich's own printing of text turns tabs into spaces
        style = Style(dim=True, italic=True) if dim else Style(color="cyan")
        self.out.print(Segments([Segment(clean, style)]), end="", soft_wrap=True)
        self.out.file.flush()

    def _system(self, text: str) -> None:
        if text:
            self.system = text
        self.say(f"system message: {self.system or 'none'}")

    def _undo(self, _: str) -> None:
        if self._last_question() is None:
            self._fail("there is nothing to take back")
            return
        for voice in self.voices:
            del voice.turns[voice.last_question() :]
        self.say(f"taken back: {len(self.turns)} messages are left")

    def _last_question(self) -> int | None:
        return self.voices[0].last_question()

    def _regenerate(self, _: str) -> None:
        if self._last_question() is None:
            self._fail("there is nothing to answer again")
            return
        for voice in self.voices:
            voice.forget_answer()
        if self.sampling.temperature == 0:
            self.say("(nothing is drawn at temperature 0, the likeliest answer comes again: /params temperature=0.7)")
        self._again += 1
        self._answer()

    def _params(self, text: str) -> None:
        if text:
            try:
                said = read_words(self.sampling.model_dump(), text.split())
                self.sampling = Sampling(**said)
            except TunesmithError as error:
                self._fail(f"not set: {error}")
                return
        told = {name: value for name, value in self.sampling.model_dump().items() if value not in (None, (), {})}
        self.say(" ".join(f"{name}={value}" for name, value in told.items()))

    def _tools(self, name: str) -> None:
        if name == "none":
            self.tools = []
        elif name:
            try:
                self.tools = read_tools(Path(name).expanduser())
            except TunesmithError as error:
                self._fail(f"not taken: {error}")
                return
        self.say(f"tools: {', '.join(tool['function']['name'] for tool in self.tools) or 'none'}")

    def _result(self, text: str) -> None:
        calls = self._open_calls()
        if not calls:
            self._fail("no tool was called")
            return
        for voice in self.voices:
            voice.turns.append({"role": "tool", "name": calls[0], "content": text})
        if len(calls) > 1:
            self.say(f"(and of {calls[1]}?)")
        else:
            self._answer()

    def _reset(self, _: str) -> None:
        for voice in self.voices:
            voice.turns = []
        self.say("the conversation is forgotten")

    def _save(self, name: str) -> None:
        if not name or not self.turns:
            self._fail("say where: /save FILE" if self.turns else "there is nothing to save yet")
            return
        try:
            save(Path(name).expanduser(), self.messages, self.tools)
        except (TunesmithError, OSError) as error:
            self._fail(f"not saved: {error}")
        else:
            self.say(f"saved {len(self.messages)} messages in {name}")

    def _help(self, _: str) -> None:
        self.say(HELP)

    def _quit(self, _: str) -> None:
        self.open = False


def save(file: Path, messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write a conversation as one dataset row, whole or not at all: `.jsonl` as a line, else as a JSON list.

    Raises:
        RunError: there is something at that place.
        OSError: the folder is missing or cannot be written.
    """
    if file.exists():
        raise RunError(f"{file} exists: choose another name")
    row = {"messages": list(messages)} | ({"tools": list(tools)} if tools else {})
    lines = file.suffix == ".jsonl"
    text = json.dumps(row if lines else [row], ensure_ascii=False, indent=None if lines else 2)
    atomic.write(file, f"{text}\n".encode())


def read_tools(file: Path) -> list[Mapping[str, Any]]:
    """The tools in a JSON or YAML file: a list of functions as OpenAI has them. Raises RunError."""
    try:
        found = parse_value(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RunError(f"{file} is no UTF-8 text ({error.reason} at byte {error.start})") from None
    tools = found if isinstance(found, list) else [found]
    for number, tool in enumerate(tools, 1):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RunError(
                f"{file}: tool {number} must be like {{type: function, function: {{name: ..., parameters: ...}}}}"
            )
    return tools
