"""The command line: find the verb, run it, and say what went wrong in one clear line and an exit code.

Nothing heavy is imported here, and a verb's module only when that verb is called, so that `--help` is quick.
"""

import argparse
import importlib
import os
import re
import sys
from contextlib import AbstractContextManager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from tunesmith import __version__
from tunesmith.errors import TunesmithError, left_to_launcher, near

VERBS = {
    "train": "Train a model as a recipe says, or go on with a run folder.",
    "preview": "Show the rows as the model will see them, and count what is trained.",
    "plan": "Say what memory and time a recipe needs, on one device or many, before anything is loaded.",
    "chat": "Talk with a model or with what a run made.",
    "serve": "Serve a model, or what a run made, as OpenAI's servers are asked.",
    "bench": "Measure how fast a recipe trains, also against other trainers.",
    "score": "Rank answers by a reward model, or say the classes of texts.",
    "evaluate": "Measure a model or a run by tasks: questions, sums, perplexity, needles, those of lm-eval.",
    "predict": "Answer the rows of a data set, and measure the answers.",
    "verify": "Train a few steps in every way that must give the same: rows cut anew, several processes.",
    "compare": "Train some recipes, or take finished runs, and show what each took and gave.",
    "export": "Make a folder that other tools load of a finished run, and verify it.",
    "data": "Write the rows of a data set in another format and file.",
    "synthesize": "Make instruction data from some seed tasks, with a model.",
    "options": "Explain every option of a recipe.",
    "recipes": "List the shipped recipes, or copy one.",
    "doctor": "Say what works on this machine, and how to get what is missing.",
}

INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 + the signal's number, as a shell reports them

HELP = """usage: tunesmith [-h] [--version] [-v] COMMAND ...

Fine-tune language models: correct, fast and pleasant.

commands:
{commands}

options:
  -h, --help     this text; `tunesmith COMMAND --help` explains one command
  --version      the version
  -v, --verbose  show the traceback of an error

Begin with `tunesmith train quickstart`."""


class UsageError(TunesmithError):
    """The command line itself is wrong."""


class Parser(argparse.ArgumentParser):
    """argparse with one line for an error, and a near match for a wrong option."""

    def __init__(self, verb: str) -> None:
        super().__init__(f"tunesmith {verb}", description=VERBS[verb], allow_abbrev=False)
        self.add_argument("-v", "--verbose", action="store_true", help="show the traceback of an error")

    def read(self, words: list[str]) -> argparse.Namespace:
        """The arguments, options and positionals in any order. Raises UsageError."""
        arguments, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            word = unknown[0].partition("=")[0]
            if "." in word and "=" in unknown[0]:
                self.error(f"a recipe's option is said without dashes: {unknown[0].lstrip('-')}")
            if not word.startswith("-"):
                self.error(f"{word!r} is one word too many")
            said = _as_word(self.prog.rpartition(" ")[2], word[2:].replace("-", "_"), arguments)
            if said:
                value = unknown[0].partition("=")[2] or next(iter(words[words.index(unknown[0]) + 1 :]), "") or "VALUE"
                self.error(f"there is no option {word}. Did you mean '{said}={value}'?")
            known = re.findall(r"--[\w-]+", self.format_usage())
            self.error(f"there is no option {word}. {near(word, known)}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Raise what `main` prints."""
        hint = "" if message.endswith("?") else f". See: {self.prog} --help"
        raise UsageError(message.rstrip(".") + hint)


def _as_word(verb: str, name: str, arguments: argparse.Namespace) -> str:
    """The option of this name that a verb takes as `option=value`; empty where there is none."""
    if verb == "predict":
        from tunesmith.prediction.options import Prediction

        return name if name in Prediction.model_fields else ""
    if verb == "chat":
        from tunesmith.generate.asked import Chatting

        return name if name in Chatting.model_fields else ""
    if verb == "synthesize":
        from tunesmith.synthesis.options import Synthesis

        return name if name in Synthesis.model_fields else ""
    if verb == "evaluate":
        from tunesmith.component import all_of
        from tunesmith.evaluate import Evaluation
        from tunesmith.seams import Task

        asked = {task: kind for task, kind in all_of(Task).items() if task in arguments.task.split(",")}
        own = [f"{task}.{name}" for task, kind in asked.items() if name in kind.model_fields]
        return own[0] if own else name if name in Evaluation.model_fields else ""
    return ""


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0 (it was {text!r})")
    return int(text)


def natural(text: str) -> int:
    """A whole number that may be 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more (it was {text!r})")
    return int(text)


def new_folder(text: str) -> Path:
    """A folder to write, and no option behind a forgotten one."""
    if re.match(r"[a-z_][\w.]*=", text) and not Path(text).exists():
        raise argparse.ArgumentTypeError(f"is missing before the option {text!r}: name the folder to write")
    return Path(text)


def aside() -> AbstractContextManager[Any]:
    """A block in which what libraries print on stdout, which is for results, goes to stderr."""
    return redirect_stdout(sys.stderr)


def warmth(text: str) -> float:
    """A temperature from 0 to 100, for argparse."""
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", text) or float(text) > 100:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 100 (it was {text!r})")
    return float(text)


def price(text: str) -> float:
    """A number above 0, for argparse."""
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", text) or not float(text):
        raise argparse.ArgumentTypeError(f"must be a number above 0 (it was {text!r})")
    return float(text)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 (an error), 2 (a wrong command line) or 130 (Ctrl-C)."""
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = bool({"-v", "--verbose"} & set(words))
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has seen enough, as in `tunesmith options | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the only place where a bug is told in one line, not a page
        if verbose:
            import traceback

            traceback.print_exc()
        told = _told(error, verbose)
        for line in () if left_to_launcher(told, type(error)) else told.splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _run(words: list[str]) -> int:
    at = next((place for place, word in enumerate(words) if not word.startswith("-")), len(words))
    before, after = words[:at], words[at:]
    for word in before:
        if word == "--version":
            print(f"tunesmith {__version__}")
            return 0
        if word in ("-h", "--help"):
            print(_help())
            return 0
        if word not in ("-v", "--verbose"):
            known = ["--version", "--help", "--verbose"]
            raise UsageError(f"there is no option {word}. {near(word, known)} See: tunesmith --help")
    if not after:
        print(_help(), file=sys.stderr)
        return 2
    return _run_verb(after[0], after[1:])


def _run_verb(verb: str, words: list[str]) -> int:
    if verb not in VERBS:
        if verb.endswith((".yaml", ".yml")):
            raise UsageError(f"there is no command {verb!r}. Did you mean 'tunesmith train {verb}'?")
        raise UsageError(f"there is no command {verb!r}. {near(verb, VERBS)} See: tunesmith --help")
    module: Any = importlib.import_module(f"tunesmith.cli.{verb}")
    parser = Parser(verb)
    module.add(parser)
    try:
        arguments = parser.read(words)
    except SystemExit:  # argparse has printed the help
        return 0
    return module.run(arguments)


def _help() -> str:
    return HELP.format(commands="\n".join(f"  {verb:12}{summary}" for verb, summary in VERBS.items()))


def _told(error: Exception, verbose: bool) -> str:
    """The lines that a person reads of an error."""
    if isinstance(error, TunesmithError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    first = next(iter(str(error).splitlines()), "")
    hint = "" if verbose else " (unexpected; -v shows the traceback)"
    return f"{type(error).__name__}: {first}{hint}"
