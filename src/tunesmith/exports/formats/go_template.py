"""The part of Go's text/template that Ollama's templates use, to see what one writes before Ollama does.

`if`, `else if`, `else`, `end`, `range` (with `$i, $x :=`), variables, fields, `and`, `or`, `not`, `eq`, `ne`, `len`,
`slice`, `index`, and trimming by `{{-` and `-}}`. Source: https://pkg.go.dev/text/template and
https://github.com/ollama/ollama/blob/main/template/template.go
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|:=|=|,|\(|\)|[^\s(),=:]+')
SPACES = " \t\r\n"


class GoError(ValueError):
    """A template says what is not known here."""


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of text, an action, or a block with its branches: each a condition (None: else) and what it writes."""

    kind: str
    words: tuple[str, ...] = ()
    text: str = ""
    branches: tuple[tuple[tuple[str, ...], tuple["Node", ...]], ...] = ()


def render(template: str, values: Mapping[str, Any]) -> str:
    """What a template writes of values. Raises GoError for what is not known here."""
    nodes, rest = _parse(_pieces(template))
    if rest is not None:
        raise GoError(f"{{{{ {' '.join(rest)} }}}} has no beginning")
    return "".join(_write(nodes, values, {"$": values}))


def _pieces(template: str) -> Iterator[str | tuple[str, ...]]:
    """Texts and the words of actions, in order."""
    at, trimmed = 0, False
    for match in re.finditer(r"\{\{(- )?(.*?)( -)?\}\}", template, re.DOTALL):
        text = template[at : match.start()]
        text = text.lstrip(SPACES) if trimmed else text
        yield text.rstrip(SPACES) if match[1] else text
        if not match[2].strip().startswith("/*"):
            yield tuple(TOKEN.findall(match[2]))
        at, trimmed = match.end(), bool(match[3])
    yield template[at:].lstrip(SPACES) if trimmed else template[at:]


def _parse(pieces: Iterator[str | tuple[str, ...]]) -> tuple[tuple[Node, ...], tuple[str, ...] | None]:
    """What comes before an `else` or `end`, or the end of the template; and that."""
    nodes: list[Node] = []
    for piece in pieces:
        if isinstance(piece, str):
            nodes.append(Node("text", text=piece))
        elif piece[0] in ("if", "range"):
            nodes.append(_block(piece, pieces))
        elif piece[0] in ("else", "end"):
            return tuple(nodes), piece
        else:
            nodes.append(Node("action", piece))
    return tuple(nodes), None


def _block(begun: tuple[str, ...], pieces: Iterator[str | tuple[str, ...]]) -> Node:
    branches, words = [], begun[1:]
    while True:
        inside, stop = _parse(pieces)
        branches.append((words, inside))
        if stop is None:
            raise GoError(f"{{{{ {' '.join(begun)} }}}} has no end")
        if stop == ("end",):
            return Node(begun[0], branches=tuple(branches))
        words = stop[2:] if len(stop) > 1 else ("true",)


def _write(nodes: Sequence[Node], dot: Any, names: dict[str, Any]) -> Iterator[str]:
    for node in nodes:
        if node.kind == "text":
            yield node.text
        elif node.kind == "action":
            value = _run(node.words, dot, names)
            yield _written(value)
        elif node.kind == "if":
            branch = next((inside for words, inside in node.branches if _run(words, dot, names)), ())
            yield from _write(branch, dot, names)
        else:
            yield from _range(node, dot, names)


def _written(value: Any) -> str:
    """A value in the text: Ollama's tools and arguments write themselves as JSON."""
    return "" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _range(node: Node, dot: Any, names: dict[str, Any]) -> Iterator[str]:
    words, inside = node.branches[0]
    named: Sequence[str] = ()
    if ":=" in words:
        at = words.index(":=")
        named, words = [word for word in words[:at] if word != ","], words[at + 1 :]
    for number, value in enumerate(_run(words, dot, names) or ()):
        own = dict(zip(named, (number, value)[-len(named) :], strict=True)) if named else {}
        yield from _write(inside, value, names | own)


def _run(words: Sequence[str], dot: Any, names: dict[str, Any]) -> Any:
    """The value of an action; one that sets a variable has none."""
    if len(words) > 1 and words[1] in (":=", "="):
        names[words[0]] = _run(words[2:], dot, names)
        return None
    return _call(_tree(iter(words)), dot, names)


def _tree(words: Iterator[str]) -> list[Any]:
    """Words up to the end or a closing parenthesis, those in parentheses as lists."""
    found: list[Any] = []
    for word in words:
        if word == ")":
            break
        found.append(_tree(words) if word == "(" else word)
    return found


def _call(tree: Sequence[Any], dot: Any, names: dict[str, Any]) -> Any:
    """What a function gives of its values, or the value alone. `and` and `or` stop where the answer is known."""

    def value(one: Any) -> Any:
        return _value(one, dot, names) if isinstance(one, str) else _call(one, dot, names)

    if not tree:
        raise GoError("an action is empty")
    first, *others = tree
    if first in ("and", "or"):
        found = None
        for one in others:
            found = value(one)
            if bool(found) is (first == "or"):
                break
        return found
    if isinstance(first, str) and first in FUNCTIONS:
        return FUNCTIONS[first](*map(value, others))
    if others:
        raise GoError(f"{first!r} is no function that is known here")
    return value(first)


def _value(word: str, dot: Any, names: dict[str, Any]) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if word in ("true", "false"):
        return word == "true"
    if re.fullmatch(r"-?\d+", word):
        return int(word)
    if not word.startswith((".", "$")):
        raise GoError(f"{word!r} is not known")
    start, *fields = word.split(".")
    value = names[start] if start else dot
    for field in fields:
        value = value if not field else (value or {}).get(field)
    return value


FUNCTIONS: dict[str, Any] = {
    "not": lambda value: not value,
    "eq": lambda value, *others: value in others,
    "ne": lambda value, other: value != other,
    "len": lambda value: len(value or ()),
    "slice": lambda value, *ends: value[slice(*ends)] if len(ends) == 2 else value[ends[0] :],
    "index": lambda value, at: value[at],
}
