"""What answers must be: JSON of a schema, what a regular expression says, calls of tools; kept to token by token.

A grammar in llguidance's notation (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md) says which
text an answer may be. Behind every token a mask says which tokens go on with such a text, whatever they are cut like;
those that end a turn are among them where the text is whole. Reasoning comes before it, as the chat template has it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunesmith import extras
from tunesmith.errors import ModelError, RecipeError
from tunesmith.generate import answer_format
from tunesmith.generate.answer_format import SHORT_ID, AnswerFormat, AsJson, Calls, Tagged
from tunesmith.generate.asked import Sampling
from tunesmith.generate.sampling import Unheld

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLANKS = r"( |\n( {0,20}|\t{0,8}))?"  # between two parts of JSON: a model that is lost would write blanks for ever
MOST_OPTIONAL = 480  # properties of an object: llguidance (1.9) follows 2,000 items, and each of them takes four
MOST_KEPT = 64  # grammars that are not made anew
IN_GRAMMAR = re.compile(r"^at \d+\(\d+\): |failed to compile JSON schema: |\n +\d+ \|.*", re.DOTALL)  # of a message
ANY_TEXT = r"(?s:.*)"
ANY_OBJECT: dict[str, Any] = {"type": "object"}
ESCAPED = re.compile(r"\\.|[/\n\r]", re.DOTALL)  # what of a regular expression is written otherwise in a rule:
IN_RULES = {"/": r"\/", "\n": r"\n", "\\\n": r"\n", "\r": r"\r", "\\\r": r"\r"}
TRIED = 4  # tokens of an answer that a grammar is followed for before it is taken: too large ones fail at the second
IN_WORDS = {  # what llguidance calls a grammar that it can say nothing more of
    "NoExtensionBias": "no text fits it: it asks for itself without an end, or for what nothing is",
    "too many expressions constructed": "it is too large: let it repeat less often, above all inside of repetitions",
}
REFERRED = ("$defs", "definitions")  # what a part of a schema may refer to in the whole


class Held:
    """One answer that is held to a grammar."""

    def __init__(self, matcher: Any, stops: frozenset[int]) -> None:
        self.is_whole = False
        self.problem: str | None = None
        self._matcher, self._stops = matcher, stops
        self._look()
        if self.problem is not None:
            raise Unheld(f"the answer cannot be held to its form: {self.problem}")

    def allow(self, logits: torch.Tensor) -> None:
        """Set the logits [V] of all tokens that do not go on with it to -inf, in place."""
        bits = np.unpackbits(self._bits, bitorder="little", count=len(logits))
        logits.masked_fill_(torch.from_numpy(bits == 0).to(logits.device), float("-inf"))

    def accept(self, token: int) -> None:
        """Go on from a token of the answer, or from the one that ends it."""
        if token not in self._stops:
            self._matcher.consume_token(token)
            self._look()

    def _look(self) -> None:
        self.is_whole = self._matcher.is_stopped()
        self._mask: bytes = b"" if self.is_whole else self._matcher.compute_bitmask()
        said = self._matcher.get_error().partition("\n")[0]
        self.problem = next((words for mark, words in IN_WORDS.items() if mark in said), said) or None

    def go_on(self) -> bool:
        """Go on from the first token that may follow. False: the answer is whole or can be held no further."""
        if self.is_whole or self.problem is not None:
            return False
        allowed = np.flatnonzero(np.unpackbits(self._bits, bitorder="little"))
        token = next((int(one) for one in allowed if one not in self._stops), None)
        if token is not None:
            self.accept(token)
        return token is not None and self.problem is None

    @property
    def _bits(self) -> np.ndarray:
        return np.frombuffer(self._mask, np.uint8)


@dataclass(frozen=True)
class Form:
    """A grammar that answers are held to."""

    text: str
    _matcher: Any
    _stops: frozenset[int]

    def begin(self) -> Held:
        """An answer of which there is nothing yet. Raises Unheld when it is too much for the one that holds it."""
        return Held(self._matcher.deep_copy(), self._stops)


class Forms:
    """Makes the grammars of the answers of one tokenizer: `stops` end a turn of its model."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stops: Iterable[int]) -> None:
        self.tokenizer, self.stops = tokenizer, frozenset(stops)
        self._made: dict[str, Form] = {}

    @cached_property
    def written(self) -> AnswerFormat:
        """How the chat template writes answers."""
        return answer_format.find(self.tokenizer)

    @cached_property
    def _special(self) -> dict[str, int]:
        return {one.content: number for number, one in self.tokenizer.added_tokens_decoder.items() if one.special}

    @cached_property
    def _vocabulary(self) -> Any:
        extras.need("an answer that is held to a form", "constrained")
        from llguidance.hf import from_tokenizer

        name = self.tokenizer.name_or_path
        if not self.stops:
            raise ModelError(f"no token ends an answer of {name}, so that none can be held to a form")
        try:
            return from_tokenizer(self.tokenizer, eos_token=sorted(self.stops))
        except ValueError as error:
            raise ModelError(f"the tokens of {name} cannot be held to a form: {error}") from None

    def of_sampling(self, sampling: Sampling) -> Form | None:
        """What `json_schema` or `regex` says. Raises RecipeError, and as `form`."""
        if sampling.json_schema is not None:
            return self.form("json_schema", json_rule(sampling.json_schema))
        return None if sampling.regex is None else self.form("regex", regex_rule(sampling.regex))

    def form(self, name: str, *rules: str, bare: bool = False) -> Form:
        """The grammar of answers that are one of some rules, behind their reasoning; `bare`: that are nothing else.

        Raises:
            RecipeError: it is none, or cannot be kept to: named `name`.
            ModelError: the tokenizer's answers cannot be held to anything.
            MissingExtra: llguidance is not installed.
        """
        if not bare:  # what no answer can be is seen although there may be reasoning before it
            self.form(name, *rules, bare=True)
        beginning = ["start: answer"] if bare else self._beginning()
        answer = f"answer: {' | '.join(f'({rule})' for rule in rules)}"
        text = "\n".join([*beginning, *self._named(), answer])
        if text not in self._made:
            if len(self._made) == MOST_KEPT:
                self._made.clear()
            self._made[text] = self._compiled(name, text)
        return self._made[text]

    def _compiled(self, name: str, text: str) -> Form:
        vocabulary = self._vocabulary
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_lark(text)
        wrong, said = LLMatcher.validate_grammar_with_warnings(grammar, vocabulary)
        matcher = LLMatcher(vocabulary, grammar, log_level=0)
        if wrong or matcher.is_error():
            reason = " ".join(IN_GRAMMAR.sub("", said[0] if wrong else matcher.get_error()).split())
            raise RecipeError(f"{name}: no answer can be held to it: {reason}")
        form = Form(text, matcher, self.stops)
        try:
            held = form.begin()
        except Unheld as error:  # it says nothing that ends, or too much
            raise RecipeError(f"{name}: {error}") from None
        if not all(held.go_on() for _ in range(TRIED)) and held.problem is not None:
            raise RecipeError(f"{name}: the answer cannot be held to its form: {held.problem}")
        return form

    def _beginning(self) -> Iterator[str]:
        """What stands before an answer: its reasoning, and what the format leads with."""
        how, lead = self.written.reasoning, self._optional(self.written.lead)
        if how is None:
            yield f"start: {lead} answer"
        else:
            opened = "" if how.begun else self._literal(how.open)
            thought = f"{opened} thought {self._optional(how.close_behind)} {lead}"
            yield f"start: {thought} answer" if how.begun else f"start: ({thought} | {lead}) answer"
            yield f"thought{self._up_to(how.close)}"

    def _named(self) -> Iterator[str]:
        """The rules that others name."""
        calls = self.written.calls
        if calls is not None and isinstance(calls.body, Tagged):
            yield f"text_argument{self._up_to(calls.body.close)}"

    def calls(self, tools: Sequence[Mapping[str, Any]], several: bool) -> str | None:
        """The rule of calls of some tools, as the chat template writes them; None where it writes none.

        Raises:
            RecipeError: the parameters of one cannot be kept to.
        """
        how = self.written.calls
        if how is None or (isinstance(how.body, AsJson) and not how.body.pieces):
            return None
        one = " | ".join(f"({self._call(how, tool['function'])})" for tool in tools)
        call = f"{self._literal(how.open)} ({one}) {self._literal(how.close)}"
        more = f"({self._literal(how.between)} {call})*" if several and how.several else ""
        return f"{self._literal(how.section_open)} {call} {more} {self._literal(how.section_close)}"

    def _call(self, how: Calls, function: Mapping[str, Any]) -> str:
        """The rule of one call, without what stands around calls."""
        name, schema = function["name"], ANY_OBJECT | (function.get("parameters") or {})
        named = f"tools: the parameters of {name}"
        self.form(named, json_rule(schema, named), bare=True)
        body = how.body
        if isinstance(body, AsJson):
            exactly = "" if how.id_characters == SHORT_ID else "1,"
            written = {
                "name": _quoted(json.dumps(name)),
                "arguments": json_rule(schema),
                "id": f'/"[A-Za-z0-9]{{{exactly}{how.id_characters}}}"/',
            }
            return " ".join(written.get(one) or self._literal(one) for one in body.pieces)
        behind = f"{self._literal(name)} {self._literal(body.mid)}"
        if isinstance(body, Tagged):
            return f"{behind} {' '.join(self._tagged(body, schema))}"
        return f"{behind} {json_rule(schema)}"

    def _tagged(self, how: Tagged, schema: Mapping[str, Any]) -> Iterator[str]:
        """The rules of arguments that are written each by itself, in the order of the schema; a text is any text."""
        whole = {name: schema[name] for name in REFERRED if name in schema}
        for key, shape in schema.get("properties", {}).items():
            begin, close = f"{self._literal(how.open)} {_quoted(key)} {self._literal(how.mid_argument)}", how.close
            if not isinstance(shape, dict) or shape.get("type") != "string":
                value = json_rule(whole | shape if isinstance(shape, dict) else whole)
            elif "enum" in shape or "const" in shape:
                value = " | ".join(_quoted(str(one)) for one in shape.get("enum", [shape.get("const")]))
            else:
                value, close = "text_argument", ""
            rule = f"{begin} ({value}) {self._literal(close)}"
            yield rule if key in schema.get("required", ()) else f"({rule})?"

    def _optional(self, text: str) -> str:
        return f"({self._literal(text)})?" if text else ""

    def _literal(self, text: str) -> str:
        """A text as it is, up to a token that ends the turn; special tokens are meant by themselves."""
        found, place = list[str](), 0
        marks = "|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) or r"(?!)"
        for mark in re.finditer(marks, text):
            found += [_quoted(text[place : mark.start()])]
            place, number = mark.end(), self._special[mark[0]]
            if number in self.stops:
                return " ".join(found)
            found += [f"<[{number}]>"]
        return " ".join([*found, _quoted(text[place:])])

    def _up_to(self, mark: str) -> str:
        """The rest of a rule: any text up to a mark, and that."""
        if any(one in mark for one in self._special):
            return f": /{ANY_TEXT}/ {self._literal(mark)}"
        return f"[lazy]: {regex_rule(ANY_TEXT + re.escape(mark))}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def json_rule(schema: Mapping[str, Any], named: str = "json_schema") -> str:
    """The rule of JSON of a schema. Raises RecipeError, which begins with `named`, for one that none can follow."""
    for one in _objects(schema):
        required = one.get("required")
        kept = set(map(str, required)) if isinstance(required, list) else ()
        free = [name for name in one["properties"] if name not in kept]
        if len(free) > MOST_OPTIONAL:
            raise RecipeError(
                f"{named}: an object has {len(free):,} properties that may be left out ({free[0]}, {free[1]} ...), and "
                f"no answer can be held to more than {MOST_OPTIONAL}: list them under required, or have fewer"
            )
    return f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': BLANKS}})}"


def _objects(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The parts of a schema that say properties, however deep."""
    left: list[Any] = [schema]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            if isinstance(one.get("properties"), dict):
                yield one
            left += one.values()
        elif isinstance(one, list):
            left += one


def regex_rule(pattern: str) -> str:
    """The rule of what a regular expression says as a whole."""
    kept = ESCAPED.sub(lambda one: IN_RULES.get(one[0], one[0]), pattern)
    return f"/{kept}/"
