"""Small tools that turn templates into sentences.

A template is text with alternatives, fields and macros: ``[Name|List] {a fruit}`` and
``<whatis> the capital of {country}``. Alternatives nest and may be empty; ``{a field}`` writes the field
with its article, ``{field}`` writes it bare; a macro is a named piece of template from `MACROS`. A question
written without a final mark gets the one its first word asks for; "~" at its end means none.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

_TELL = "tell me|can you tell me|could you tell me|do you know|please tell me|I want to know|I would like to know"

MACROS = {
    "whatis": f"[what is|what's|what is|what's|what is|{_TELL}]",
    "tell": f"[{_TELL}]",
    "name": "[name|list|give me|tell me|write|name|list|say|can you name|can you give me|could you list"
    "|please name|please list|please give me|think of|I need|I would like|write down|come up with]",
    "write": "[write|make|give me|write me|can you write|please write|could you make|can you make me|create]",
    "do": "[|||please |can you |could you |would you please |I want you to ]",
}

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()

_QUESTION_WORDS = frozenset(
    "what what's who who's whose where where's when why how how's which is are am was were do does did can "
    "could would will should may has in at on from of and or after before with for it's".split()
)
_IMPERATIVES = frozenset(
    "tell please name list give write say think add find spell make create count solve explain describe "
    "define repeat finish complete show translate choose pick compare let's i'd".split()
)
_OPENERS = (
    "hey, ", "okay, ", "so, ", "well, ", "hi, ", "hello, ", "now ", "quick question: ",
    "I have a question. ", "one question: ", "let me ask you something. ", "next question: ",
    "here is my question. ", "help me: ", "all right, ",
)  # fmt: skip
_FOLLOW_UPS = ("and ", "what about", "how about", "now ", "or ")
_SOUNDS_LIKE_YOU = ("uni", "use", "usu", "eu", "one")
_FIELD = re.compile(r"\{(a )?(\w+)\}")
_SENTENCE_START = re.compile(r"(^|[.!?] |\n)([\"'(]?)([a-z])")


@dataclass(frozen=True)
class Turn:
    """One thing the user says and what the assistant answers."""

    ask: str
    answer: str
    short: str | None = None
    """The bare answer, where the question has one."""
    exact: bool = False
    """The spelling of the question matters, so it is never varied."""


def expand(template: str, rng: Random) -> str:
    """Choose one of the alternatives everywhere in a template; fields stay as they are."""
    return re.sub(r"  +", " ", _choose(_parse(template), rng)).strip()


@functools.cache
def _parse(template: str) -> tuple:
    text = re.sub(r"<(\w+)>", lambda found: MACROS[found.group(1)], template)
    stack: list[list[list]] = [[[]]]
    for part in re.split(r"([\[\]|])", text):
        if part == "[":
            stack.append([[]])
        elif part == "]":
            choices = stack.pop()
            stack[-1][-1].append(tuple(tuple(choice) for choice in choices))
        elif part == "|":
            stack[-1].append([])
        elif part:
            stack[-1][-1].append(part)
    assert len(stack) == 1 and len(stack[0]) == 1, f"unbalanced template: {template}"
    return tuple(stack[0][0])


def _choose(pieces: tuple, rng: Random) -> str:
    return "".join(piece if isinstance(piece, str) else _choose(rng.choice(piece), rng) for piece in pieces)


def article(noun: str) -> str:
    """Put "a" or "an" in front of a noun, by its sound."""
    vowel = noun[0].lower() in "aeiou" and not noun.lower().startswith(_SOUNDS_LIKE_YOU)
    return f"{'an' if vowel or noun.startswith('hour') else 'a'} {noun}"


def fill(text: str, fields: Mapping[str, str]) -> str:
    """Write the fields of an expanded template."""
    return _FIELD.sub(lambda found: article(fields[found[2]]) if found[1] else str(fields[found[2]]), text)


def capitalise(text: str) -> str:
    """Begin every sentence with a capital letter."""
    return _SENTENCE_START.sub(lambda found: found[1] + found[2] + found[3].upper(), text)


def upper_first(text: str) -> str:
    """Write the first letter large and leave the others alone."""
    return text[:1].upper() + text[1:]


def say(rng: Random, template: str | Sequence[str], **fields: str) -> str:
    """Write a finished statement from a template, or from one of several."""
    chosen = template if isinstance(template, str) else rng.choice(template)
    return capitalise(fill(expand(chosen, rng), fields))


def question(rng: Random, template: str | Sequence[str], **fields: str) -> str:
    """Write a finished question or request, with the mark its first word asks for."""
    text = say(rng, template, **fields)
    if text[-1] == "~":
        return text[:-1].rstrip()
    if text[-1] in ".?!=:\"'_":
        return text
    first = re.split(r"[.:!?] ", text)[-1].split()[0].lower().strip(",")
    return text + ("?" if first in _QUESTION_WORDS else ".")


def vary(rng: Random, text: str, *, opening: bool) -> str:
    """Type a question as another person would: an opener, no capitals, no final mark, a please."""
    known = text.split(" ", 1)[0].lower().strip(",") in _QUESTION_WORDS | _IMPERATIVES
    if opening and known and not text.lower().startswith(_FOLLOW_UPS) and rng.random() < 0.12:
        text = capitalise(rng.choice(_OPENERS) + text[0].lower() + text[1:])
    if known and not re.search("please|[:_]", text.lower()) and text[-1] in "?." and rng.random() < 0.04:
        text = f"{text[:-1]}, please{text[-1]}"
    kind = rng.random()
    if kind < 0.14:
        text = text.lower()
    if kind < 0.1 or 0.14 < kind < 0.22:
        text = text.rstrip("?.!")
    return text


def joined(items: Sequence[str], last: str = "and") -> str:
    """List items as people do: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def plural(noun: str) -> str:
    """Form the regular plural of a noun."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")
