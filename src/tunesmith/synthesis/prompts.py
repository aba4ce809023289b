"""What the model is asked, and how its answer is taken apart.

The prompts follow those of Self-Instruct (Wang et al. 2022, arXiv 2212.10560, appendix A): a list of instructions to
go on with, whether a task is one of classification, and examples of a task, input first, or label first where it is
one of classification (a model that writes inputs first makes nearly all of them of one label). Where the paper shows
tasks of its own, these show the seed tasks. So a prompt speaks the seeds' language, but for its own words, and is
one that a base model goes on with and a chat model answers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

MORE = "Come up with a series of new {kind}, each of another sort. Go on with this list for {count} more, in the same \
language.{hint} Write nothing but the list.\n"
LABELS = " Say the possible labels where it helps."
DECIDE = "Is the answer of a task one label out of a few? Say Yes or No, as for the tasks before it.\n"
EXAMPLES = "Come up with up to {count} different examples of the last task, each in the form that the tasks before it \
show: Input is what the task is given, Output is the whole right answer. Leave Input out where the task needs none.\n"
LABELLED = "Come up with an input for each possible label of the last task, at most {count}, in the form that the \
tasks before it show: the label first, then an Input that has it.\n"

ITEM = re.compile(r"^[ \t*]*\d+[ \t]*[.)．、:：](?!\d)[ \t*]*", re.MULTILINE)
EXAMPLE = r"(?P<example>^[ \t#*_]*example[ \t]*\d+\b[ \t*_]*[.:：)]?[ \t*_]*)"
MARK = r"(?P<{0}>^[ \t#*_-]*{1}[ \t]*\d*[ \t*_]*[:：][ \t*_]*)"
NUMBERED = re.compile(EXAMPLE, re.MULTILINE | re.IGNORECASE)
INPUT_FIRST = re.compile(
    f"{EXAMPLE}|{MARK.format('input', 'input')}|{MARK.format('output', 'output')}", re.MULTILINE | re.IGNORECASE
)
INPUT = re.compile(MARK.format("input", "input"), re.MULTILINE | re.IGNORECASE)
LABEL = re.compile(r"^[ \t#*_-]*(?:class[ \t]+)?label[ \t]*\d*[ \t*_]*[:：][ \t*_]*", re.MULTILINE | re.IGNORECASE)
VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
NOTHING = ("none", "n/a", "na", "no input", "empty")  # how models write that a task needs no input

NEXT_TASK = "\nTask:"  # a model that goes on with a task of its own has said enough


@dataclass(frozen=True, slots=True)
class Instance:
    """What a task is given, which may be nothing, and the answer."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task that a person wrote, with an example."""

    instruction: str
    instances: tuple[Instance, ...]
    classification: bool | None = None  # None where the file does not say


def more(instructions: Sequence[str], classification: bool) -> tuple[str, str]:
    """The prompt for as many new instructions as are shown, and the text that would be one too many."""
    kind, hint = ("classification tasks", LABELS) if classification else ("tasks", "")
    count = len(instructions)
    listed = [f"{number}. {text.rstrip(':：')}" for number, text in enumerate(map(one_line, instructions), 1)]
    head = MORE.format(kind=kind, count=count, hint=hint)
    return "\n".join([head, *listed, f"{count + 1}."]), f"\n{2 * count + 1}."


def decide(instruction: str, shown: Sequence[Task]) -> str:
    """The prompt that asks whether a task is one of classification."""
    told = [f"Task: {one_line(task.instruction)}\n{'Yes' if task.classification else 'No'}\n" for task in shown]
    return "\n".join([DECIDE, *told, f"Task: {instruction}\n"])


def instances(instruction: str, shown: Sequence[Task], classification: bool, count: int) -> str:
    """The prompt for examples of a task."""
    write, head = (_labelled, LABELLED) if classification else (_example, EXAMPLES)
    told = [
        "\n".join([f"Task: {one_line(task.instruction)}", *(write(*one) for one in enumerate(task.instances, 1)), ""])
        for task in shown
    ]
    return "\n".join([head.format(count=count), *told, f"Task: {instruction}\n"])


def _example(number: int, one: Instance) -> str:
    given = f"Input: {one.input}\n" if one.input else ""
    return f"Example {number}\n{given}Output: {one.output}"


def _labelled(number: int, one: Instance) -> str:
    return f"Class label: {one.output}\nInput: {one.input}"


def one_line(text: str) -> str:
    """Text with each run of blanks and line ends as one blank, without the asterisks of bold print."""
    return " ".join(text.replace("**", "").split())


def instructions_in(text: str) -> list[str]:
    """The items of the list that an answer goes on with; before the first number stands one of its own."""
    first, *others = [one_line(item) for item in ITEM.split(text)]
    return [first, *others] if first else others


def verdict_in(text: str) -> bool | None:
    """Whether an answer says yes; None when it says neither."""
    found = VERDICT.search(text)
    return found[1].lower() == "yes" if found else None


def instances_in(text: str, classification: bool) -> list[Instance | None]:
    """The examples of an answer in their order; None for one without an answer in it."""
    if classification:
        return [_read_labelled(piece) for piece in LABEL.split(text)[1:]]
    found: list[Instance | None] = []
    open_, given = False, ""  # an example has begun, and this is its input
    text = NUMBERED.sub(r"\g<0>\n", text)  # what follows on the same line gets one of its own
    marks = list(INPUT_FIRST.finditer(text))  # before the first stand a chat model's opening words
    for mark, following in zip_longest(marks, marks[1:]):
        said = text[mark.end() : following.start() if following else None].strip()
        if mark.lastgroup == "output":
            found.append(Instance(_given(given), said))
            open_, given = False, ""
            continue
        if open_ and (mark.lastgroup == "example" or given):
            found.append(None)
            given = ""
        open_, given = True, said if mark.lastgroup == "input" else ""
    return [*found, None] if open_ else found


def _read_labelled(piece: str) -> Instance | None:
    label, _, rest = piece.strip().partition("\n")
    return Instance(_given(INPUT.sub("", rest, count=1)), label.strip())


def _given(text: str) -> str:
    text = text.strip()
    return "" if text.strip("()[]<>. ").lower() in NOTHING else text
