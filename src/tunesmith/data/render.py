"""From rows to tokens: ids and what is trained of them come from one function; every row is accounted for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data import overlong, source
from tunesmith.errors import DataError, ModelError, TemplateError
from tunesmith.formats.auto import Auto, choose
from tunesmith.recipe import Data, Recipe, Source
from tunesmith.seams import Format, Objective, Template, Written
from tunesmith.types import Message, Sample, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = tuple[str, Mapping[str, Any]]  # where it stands, and its columns

CHUNK_ROWS = 512  # rows that are tokenised in one call

NO_TURN = "no trained turn"
EMPTY_ANSWER = "empty answer"
EMPTY_TEXT = "empty text"
OVERLONG = "longer than data.max_tokens"


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sample as tokens, or why there is none. A split row gives several, its parts numbered from 0."""

    where: str
    branches: tuple[Tokens, ...]  # empty when dropped
    label: float | None = None
    dropped: str | None = None  # the reason
    part: int = 0
    truncated: bool = False


@dataclass(frozen=True)
class Renderer:
    """Renders rows for an objective. The tokenizer is one that the template prepared."""

    data: Data
    objective: Objective
    tokenizer: "PreTrainedTokenizerBase"

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {self.tokenizer.name_or_path} does not say where its tokens stand in a "
                "text, and what is trained is found by that: use a fast one (with a tokenizer.json)"
            )

    def render(self, rows: Sequence[Row], format_: Format) -> list[Rendered]:
        """The samples of some rows, in order.

        Raises:
            DataError: a row is not of the format, or the objective cannot learn from what it holds.
            TemplateError: a conversation cannot be written or trained as asked.
            ModelError: the tokenizer has no eos_token to end a document with.
        """
        samples = [(where, self._read(where, row, format_)) for where, row in rows]
        documents = iter(self._documents([sample for _, sample in samples if sample.is_document]))
        written = [self._write(where, sample) for where, sample in samples]
        tokens = iter(self._encode([text for texts in written for text in texts]))
        found: list[Rendered] = []
        for (where, sample), texts in zip(samples, written, strict=True):
            branches = tuple(islice(documents, 1) if sample.is_document else islice(tokens, len(texts)))
            found += self._judge(where, sample, branches)
        assert all(tokens.weight[1:].any() for one in found for tokens in one.branches), "a kept sample asks something"
        return found

    def _read(self, where: str, row: Mapping[str, Any], format_: Format) -> Sample:
        try:
            sample = format_.read(row)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        wanted = type(self.objective).branches
        if len(sample.branches) != len(wanted):
            raise DataError(
                f"{where}: the objective learns from {len(wanted)} conversation a row ({', '.join(wanted)}), "
                f"and the row has {len(sample.branches)}"
            )
        return sample

    def _documents(self, samples: Sequence[Sample]) -> list[Tokens]:
        """Documents with the tokens that the tokenizer puts around a text, each ended by EOS."""
        if not samples:
            return []
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ModelError(
                f"the tokenizer of {self.tokenizer.name_or_path} has no eos_token, and documents end with "
                "it: name one in its tokenizer_config.json"
            )
        found = []
        encoded = self.tokenizer([sample.branches[0][0].content for sample in samples], verbose=False)
        for sample, ids in zip(samples, encoded["input_ids"], strict=True):
            whole = np.asarray([*ids, *([end] if ids[-1:] != [end] else [])], np.int32)
            found.append(Tokens(whole, np.full(len(whole), sample.branches[0][0].weight, np.float32)))
        return found

    def _write(self, where: str, sample: Sample) -> list[Written]:
        """The conversations of a sample as text; none for a document."""
        if sample.is_document:
            return []
        turns = sample.branches
        if type(self.objective).documents:  # all of it is learned, so nothing is asked of single turns
            turns = tuple(_untrained(branch) for branch in turns)
        return [self._written(where, branch, sample) for branch in turns]

    def _written(self, where: str, turns: tuple[Message, ...], sample: Sample) -> Written:
        try:
            return self.data.template.write(turns, sample.tools, self.tokenizer)
        except TemplateError as error:
            raise TemplateError(f"{where}: {error}") from error

    def _encode(self, written: Sequence[Written]) -> list[Tokens]:
        """Tokenise each text once, and place its spans on the tokens that begin in them."""
        if not written:
            return []
        encoded = self.tokenizer(
            [one.text for one in written],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [
            Tokens(np.asarray(ids, np.int32), place(one.spans, np.asarray([start for start, _ in offsets])))
            for one, ids, offsets in zip(written, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def _judge(self, where: str, sample: Sample, branches: tuple[Tokens, ...]) -> list[Rendered]:
        """Keep, shorten, split or drop a sample."""
        if type(self.objective).documents and not sample.is_document:
            branches = tuple(Tokens(one.ids, np.ones(len(one), np.float32)) for one in branches)
        reason = self._reason(sample, branches)
        if reason is None:
            return [Rendered(where, branches, sample.label)]
        if reason == OVERLONG and self.data.overlong != "drop" and len(branches) == 1:
            shorten = self._shortened_document if sample.is_document else self._shortened
            return shorten(where, sample, branches[0])
        return [Rendered(where, (), sample.label, reason)]

    def _reason(self, sample: Sample, branches: tuple[Tokens, ...]) -> str | None:
        """Why a sample cannot be trained on as it is, if so."""
        if sample.is_document and _is_empty(sample.branches[0][0]):
            return EMPTY_TEXT
        if not all(one.weight[1:].any() for one in branches):
            return NO_TURN
        if type(self.objective).documents:
            return None
        if any(turn.weight and _is_empty(turn) for branch in sample.branches for turn in branch):
            return EMPTY_ANSWER
        return OVERLONG if max(map(len, branches)) > self.data.max_tokens else None

    def _shortened_document(self, where: str, sample: Sample, tokens: Tokens) -> list[Rendered]:
        pieces = overlong.cut(tokens, self.data.max_tokens)
        if self.data.overlong == "truncate":
            return [Rendered(where, (pieces[0],), sample.label, truncated=True)]
        return [Rendered(where, (piece,), sample.label, part=part) for part, piece in enumerate(pieces)]

    def _shortened(self, where: str, sample: Sample, tokens: Tokens) -> list[Rendered]:
        """A conversation that is too long, truncated or split as the recipe says."""
        turns, limit = sample.branches[0], self.data.max_tokens

        def count(turns: tuple[Message, ...]) -> int:
            return len(self._encode([self._written(where, _untrained(turns), sample)])[0])

        if self.data.overlong == "split":
            parts = overlong.split(turns, count, limit)
        else:
            parts = [overlong.truncate(turns, count, limit, self.tokenizer)]
        found = []
        for number, part in enumerate(parts):
            branches: tuple[Tokens, ...] = ()
            reason: str | None = OVERLONG
            if part is not None:
                branches = tuple(self._encode([self._written(where, part, sample)]))
                reason = self._reason(Sample((part,), sample.label, sample.tools), branches)
            truncated = self.data.overlong == "truncate" and reason is None
            kept = () if reason else branches
            found.append(Rendered(where, kept, sample.label, reason, part=number, truncated=truncated))
        return found


def _untrained(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(replace(turn, train=False) for turn in turns)


def _is_empty(turn: Message) -> bool:
    """Whether a turn says nothing: no text but blanks, no tool calls, no reasoning."""
    blank = not turn.content.strip() if isinstance(turn.content, str) else not turn.content
    return blank and not turn.tool_calls and not turn.reasoning


def place(spans: Sequence[tuple[int, int, float]], starts: np.ndarray) -> np.ndarray:
    """The weight of each token [T] from spans of characters and the character that each token begins at [T].

    A token is in the span that it begins in: one that stands partly in the prompt is not trained, and an end
    token that takes the blanks behind it (as Phi's do) is.
    """
    weight = np.zeros(len(starts), np.float32)
    for start, end, value in spans:
        weight[(starts >= start) & (starts < end)] = value
    return weight


def format_of(one: Source, row: Mapping[str, Any], where: str) -> Format:
    """The format of a source: as the recipe says, or chosen by its first row."""
    if not isinstance(one.format, Auto):
        return one.format
    try:
        return choose(row)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def chunks(one: Source) -> Iterator[tuple[list[Row], Format]]:
    """The rows of a source, some at a time, with its format."""
    rows: Iterator[Row] = source.read(one)
    format_: Format | None = None
    while chunk := list(islice(rows, CHUNK_ROWS)):
        format_ = format_ or format_of(one, chunk[0][1], chunk[0][0])
        yield chunk, format_


def rendered(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Rendered]:
    """The samples of data.train, in file order, as the model will see them, for any tokenizer."""
    template: Template = recipe.data.template
    renderer = Renderer(recipe.data, recipe.objective, template.prepare(tokenizer))
    for one in recipe.data.train:
        for rows, format_ in chunks(one):
            yield from renderer.render(rows, format_)
