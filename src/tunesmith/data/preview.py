"""Rows as the model will see them: the text of every token, what is trained of it, and how much.

The first token of a sequence is never learned, as nothing stands before it, and is shown as not trained.
"""

import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.component import name_of
from tunesmith.data import lengths, registry, sides
from tunesmith.data.ledger import DUPLICATE, Ledger, note, source_names
from tunesmith.data.prompt import notes
from tunesmith.data.refuse import unlearnable
from tunesmith.data.render import format_notes, rendered
from tunesmith.data.rendered import Rendered
from tunesmith.data.shared import own_tokens
from tunesmith.data.store import whole_key
from tunesmith.types import Label, Tokens

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

    from tunesmith.recipe import Recipe
    from tunesmith.recipe_data import Source
    from tunesmith.seams import Format

LONGEST_CHARACTER = 4  # bytes of UTF-8, so at most as many tokens

INVISIBLE = (*range(0x80, 0xA0), 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF)
TURNING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # change the direction of the text after them
VISIBLE = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "\u2421"}  # control pictures
VISIBLE |= {code: f"<U+{code:04X}>" for code in (*INVISIBLE, *TURNING)}
VISIBLE |= {ord("\n"): "\u21b5\n", ord("\t"): "\u21e5\t"}

TRAINED = ("#ecfdf5 on #14532d", "#ecfdf5 on #166a3a")  # two shades, so that the ends of tokens are seen
WEIGHTED = ("#fffbeb on #78350f", "#fffbeb on #92480e")
UNTRAINED = ("grey50", "grey62")
SPECIAL = "bold #a78bfa"
SPECIAL_TRAINED = "bold #ddd6fe"


@dataclass
class Preview:
    """The samples to show, and the ledger of those that were read: all of them, or only those shown."""

    recipe: "Recipe"
    tokenizer: "PreTrainedTokenizerBase"  # prepared by the recipe's template
    rows: int | None = None  # samples to show; None is all
    everything: bool = False  # whether the ledger counts those that are not shown too
    ledger: Ledger = field(default_factory=Ledger)
    complete: bool = False  # whether the last row has been read
    branches: tuple[str, ...] = ()  # what the branches of the samples are called, by the format of their source
    classes: tuple[str, ...] = ()  # the names of those that labels are numbers of, by the format of their source
    notes: list[str] = field(default_factory=list)  # what is to be said of the rows
    _begun: list["Source"] = field(default_factory=list)
    _lengths: "array[int]" = field(default_factory=lambda: array("q"))
    _seen: set[bytes] = field(default_factory=set)  # digests of the samples: 100 MB for a million

    def __iter__(self) -> Iterator[Rendered]:
        """The samples to show, in file order; after the last one the ledger is complete."""
        kind, name = type(self.recipe.objective), name_of(self.recipe.objective)
        learns_words = "values" not in kind.needs
        self.notes += notes(self.tokenizer)
        if kind.of_samples():
            self.notes.append(f"the objective {name} trains a head that reads whole sequences: no token is learned")
        if kind.mismatched:
            self.notes.append(
                f"the objective {name} runs each sample also with another sample's answer, which is not learned and "
                "not shown"
            )
        if self.recipe.data.near_duplicates is not None or self.recipe.data.leakage == "drop":
            self.notes.append("near duplicates and leaked samples are looked for when a run starts, and are shown here")
        for number, one in enumerate(rendered(self.recipe, self.tokenizer, self._begin)):
            beyond = self.rows is not None and number >= self.rows
            if beyond and not self.everything and not one.part:  # a row that was begun is counted to its end
                return
            one = self._looked_at(one)
            if not learns_words:
                one = replace(one, branches=tuple(map(_unlearned, one.branches)))
            self.ledger.add(one, source_names(self._begun)[-1])
            if not beyond:
                yield one
        self.complete = True

    def _looked_at(self, one: Rendered) -> Rendered:
        """A sample, left out where it equals an earlier one and the recipe says so."""
        if one.dropped is not None:
            return one
        key, tokens = whole_key(one), sum(map(len, one.branches))
        if key in self._seen:
            note(self.ledger.found, DUPLICATE, one.where)
            if self.recipe.data.duplicates == "drop":
                return replace(one, branches=(), dropped=DUPLICATE, lost_tokens=tokens)
        self._seen.add(key)
        self._lengths.append(own_tokens(one.branches))
        return one

    def lines(self) -> list[str]:
        """What is to be said of the rows, and the account of those that were read."""
        account = self.ledger.lines(self.recipe.data.streaming, self.recipe.objective.of_samples())
        return [*self.notes, *account, *self.length_lines()]

    def length_lines(self) -> list[str]:
        """How long the samples are, in a line; none where there is no sample."""
        sequences = type(self.recipe.objective).sequences()
        return [lengths.line(lengths.percentiles(np.asarray(self._lengths)), sequences)] if self._lengths else []

    def _begin(self, one: "Source", format_: "Format") -> None:
        self._begun.append(one)
        self.notes += registry.notes((one,))
        self.notes += format_notes(source_names(self._begun)[-1], one, format_)
        self.classes = format_.class_names()
        self.branches = sides.NAMES if type(self.recipe.objective).encodes else format_.branches()
        if (problem := unlearnable(format_, self.recipe.objective)) is not None:
            self.notes.append(f"{one.path}: {problem}")

    @property
    def extent(self) -> str:
        """What the ledger counts, in words."""
        if self.complete:
            return "every row of data.train"
        return f"the first {self.rows} samples of data.train (--all counts the others)"


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tokens that are whole characters together, mostly one token."""

    text: str
    ids: tuple[int, ...]
    weight: float
    special: bool


def pieces(tokens: Tokens, tokenizer: "PreTrainedTokenizerBase") -> list[Piece]:
    """The tokens of a sequence with their text.

    A token alone decodes wrongly when a character is spread over several, or when the tokenizer drops the
    space that a text begins with; so tokens are decoded behind the piece before, until a character ends.
    """
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    ids, weights = tokens.ids.tolist(), [0.0, *tokens.weight[1:].tolist()]
    if tokens.label is not None:
        weights = (tokens.label >= 0).astype(float).tolist()
    found: list[Piece] = []
    before = start = 0  # the piece before is ids[before:start]
    for end in range(1, len(ids) + 1):
        text = decode(ids[before:end], tokenizer)
        whole = not text.endswith("\ufffd") or end - start >= LONGEST_CHARACTER
        if whole or end == len(ids) or ids[end] in special:
            head = len(decode(ids[before:start], tokenizer))
            found.append(Piece(text[head:], tuple(ids[start:end]), weights[start], ids[start] in special))
            before, start = start, end
    return found


def decode(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    """The exact text of some tokens, special ones included."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def visible(text: str) -> str:
    """Text with its line ends, tabs, control characters and changes of direction to be seen."""
    return text.translate(VISIBLE)


def runs(found: list[Piece]) -> Iterator[tuple[float, list[Piece]]]:
    """Neighbouring pieces of one weight together."""
    for weight, run in groupby(found, key=lambda piece: piece.weight):
        yield weight, list(run)


def trained_tokens(one: Rendered) -> int:
    """The number of a sample's tokens that are learned."""
    return sum(tokens.trained for tokens in one.branches)


def branches(one: Rendered, names: Sequence[str]) -> Iterator[tuple[str, Tokens]]:
    """The sequences of a sample with what is said above each: nothing where there is one."""
    if len(one.branches) == 1:
        yield "", one.branches[0]
        return
    named = len(names) == len(one.branches)
    kind = "conversation" if len(names) == 1 else "answer"  # of a divided row, or one of several from the best on
    for number, tokens in enumerate(one.branches):
        name = names[number] if named else f"{kind} {number + 1} of {len(one.branches)}"
        shared = f", of which the first {tokens.shared:,} stand above" if tokens.shared else ""
        yield f"{name}: {len(tokens):,} tokens{shared}", tokens


def headline(one: Rendered, classes: Sequence[str] = ()) -> str:
    """What is said above a sample, whose label is the number of one of `classes` where there are any."""
    if one.dropped is not None:
        return f"dropped: {one.dropped}"
    number, trained = sum(map(len, one.branches)), trained_tokens(one)
    label = "" if one.label is None else f", label {_label(one.label, classes)}"
    cut = ", truncated" if one.truncated else f", part {one.part + 1}" if one.part else ""
    return f"{number:,} tokens, {trained:,} trained ({trained / number:.0%}){label}{cut}"


def json_lines(preview: Preview) -> Iterator[str]:
    """One JSON object a sample, in file order, and the ledger last."""
    for one in preview:
        branches = [
            {
                "ids": tokens.ids.tolist(),
                "weight": [round(weight, 6) for weight in tokens.weight.tolist()],
                "text": decode(tokens.ids.tolist(), preview.tokenizer),
            }
            for tokens in one.branches
        ]
        yield json.dumps({"where": one.where, "branches": branches, "label": one.label, "dropped": one.dropped})
    yield json.dumps({"ledger": preview.ledger.as_dict()} | ({"notes": preview.notes} if preview.notes else {}))


def show(preview: Preview, console: "Console | None" = None) -> None:
    """Print the samples and the ledger; trained tokens are coloured, or marked where there is no colour."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = console or Console(file=sys.stdout, highlight=False, emoji=False)
    colour = console.color_system is not None and not console.no_color

    def headed(*words: str | tuple[str, str]) -> None:
        title = Text.assemble(*words, " ")
        line = ("\u2500" if colour else "-") * (console.width - title.cell_len)  # nothing after a long path
        console.print(title.append(line, "dim"), soft_wrap=True)

    console.print(_legend(colour), end="\n\n")
    for one in preview:
        headed((visible(one.where), "bold"), "  ", headline(one, preview.classes))
        for title, tokens in branches(one, preview.branches):
            if title:
                console.print(Text(title, "italic"))
            text = _coloured(tokens, preview.tokenizer, colour)
            console.print(Padding(text, (0, 0, 1, 2)) if colour else text, soft_wrap=not colour)
    headed((preview.extent, "bold"))
    for line in preview.lines():
        console.print(Text(f"  {line}"), soft_wrap=True)
    console.print()
    for size, bar, number in lengths.bars(preview.ledger.as_dict()["lengths"], blocks=colour):
        console.print(Text.assemble("  ", (size, "dim"), "  ", (bar, "#22a559"), f" {number}"), soft_wrap=True)


def _unlearned(tokens: Tokens) -> Tokens:
    return replace(tokens, weight=np.zeros_like(tokens.weight))


def _label(label: Label, classes: Sequence[str]) -> str:
    """A number or the class that it is of, or those of all the classes that hold."""
    if isinstance(label, tuple):
        holding = (number for number, holds in enumerate(label) if holds)
        return "[" + ", ".join(visible(classes[number]) if classes else str(number) for number in holding) + "]"
    return visible(classes[int(label)]) if classes else f"{label:g}"


def _legend(colour: bool) -> "Text":
    from rich.text import Text

    if not colour:
        return Text("\u27e6trained\u27e7 not trained \u27e6\u00d70.5 trained with weight 0.5\u27e7")
    marked = ((" trained ", TRAINED[0]), "  ", (" \u00d70.5 trained with weight 0.5 ", WEIGHTED[0]))
    return Text.assemble(*marked, "  ", ("not trained", UNTRAINED[0]), "  ", ("<special>", SPECIAL))


def _coloured(tokens: Tokens, tokenizer: "PreTrainedTokenizerBase", colour: bool) -> "Text":
    from rich.text import Text

    text = Text(overflow="fold")
    for weight, run in runs(pieces(tokens, tokenizer)):
        styles = UNTRAINED if weight == 0 else TRAINED if weight == 1 else WEIGHTED
        text.append("\u27e6" if weight and not colour else "")
        text.append("" if weight in (0, 1) else f"\u00d7{weight:g} ", f"bold {styles[0]}")
        for number, piece in enumerate(run):
            style = styles[number % 2]
            if piece.special:
                style = f"{SPECIAL_TRAINED} on {style.partition(' on ')[2]}" if weight else SPECIAL
            text.append(visible(piece.text), style)
        text.append("\u27e7" if weight and not colour else "")
    if text.plain.endswith("\n"):
        text.right_crop(1)  # printing ends the line
    return text
