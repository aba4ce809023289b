"""From rows to tokens: ids and what is trained of them come from one function, and every row is accounted for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data import overlong, source
from tunesmith.errors import DataError, TemplateError
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
OVERLONG = "longer than data.max_tokens"


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sample as tokens, or why there is none. A row that is split gives several, its parts numbered from 0."""

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

    def render(self, rows: Sequence[Row], format_: Format) -> list[Rendered]:
        """The samples of some rows, in order.

        Raises:
            DataError: a row is not of the format, or the objective cannot learn from what it holds.
            TemplateError: a conversation cannot be written or trained as asked.
        """
        samples = [(where, self._read(where, row, format_)) for where, row in rows]
        written = [self._write(where, sample) for where, sample in samples]
        tokens = iter(self._encode([text for texts in written for text in texts]))
        found: list[Rendered] = []
        for (where, sample), texts in zip(samples, written, strict=True):
            found += self._judge(where, sample, tuple(islice(tokens, len(texts))))
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

    def _write(self, where: str, sample: Sample) -> list[Written]:
        if sample.is_document:
            content = sample.branches[0][0].content
            assert isinstance(content, str)
            return [Written(content, ((0, len(content), sample.branches[0][0].weight),))]
        return [self._written(where, branch, sample) for branch in sample.branches]

    def _written(self, where: str, turns: tuple[Message, ...], sample: Sample) -> Written:
        try:
            return self.data.template.write(turns, sample.tools, self.tokenizer)
        except TemplateError as error:
            raise TemplateError(f"{where}: {error}") from error

    def _encode(self, written: Sequence[Written]) -> list[Tokens]:
        """Tokenise each text once, and place its spans on the tokens that lie wholly in them."""
        if not written:
            return []
        encoded = self.tokenizer(
            [one.text for one in written],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [
            Tokens(np.asarray(ids, np.int32), place(one.spans, np.asarray(offsets, np.int64).reshape(-1, 2)))
            for one, ids, offsets in zip(
                written, encoded["input_ids"], encoded["offset_mapping"], strict=True
            )
        ]

    def _judge(self, where: str, sample: Sample, branches: tuple[Tokens, ...]) -> list[Rendered]:
        """Keep, shorten, split or drop a sample."""
        everything = type(self.objective).documents
        if sample.is_document:
            branches = tuple(self._as_document(tokens) for tokens in branches)
        elif everything:
            branches = tuple(Tokens(one.ids, np.ones(len(one), np.float32)) for one in branches)
        reason = None if everything else self._reason(sample, branches)
        if reason is None:
            return [Rendered(where, branches, sample.label)]
        if reason == OVERLONG and self.data.overlong != "drop" and len(branches) == 1:
            return self._shortened(where, sample, branches[0])
        return [Rendered(where, (), sample.label, reason)]

    def _reason(self, sample: Sample, branches: tuple[Tokens, ...]) -> str | None:
        trained = [turn for branch in sample.branches for turn in branch if turn.weight]
        if not trained or not all(one.weight[1:].any() for one in branches):
            return NO_TURN
        if not any(turn.content or turn.tool_calls for turn in trained):
            return EMPTY_ANSWER
        return OVERLONG if max(map(len, branches)) > self.data.max_tokens else None

    def _shortened(self, where: str, sample: Sample, tokens: Tokens) -> list[Rendered]:
        """A sample that is too long, truncated or split as the recipe says."""
        limit = self.data.max_tokens
        if sample.is_document:
            starts = range(0, len(tokens), limit) if self.data.overlong == "split" else [0]
            pieces = [Tokens(tokens.ids[a : a + limit], tokens.weight[a : a + limit]) for a in starts]
            pieces = [piece for piece in pieces if len(piece) > 1]
            cut = self.data.overlong == "truncate"
            return [
                Rendered(where, (one,), sample.label, part=i, truncated=cut) for i, one in enumerate(pieces)
            ]

        count = self._counter(where, sample)
        if self.data.overlong == "truncate":
            parts = [overlong.truncate(sample.branches[0], count, limit, self.tokenizer)]
        else:
            parts = overlong.split(sample.branches[0], count, limit)
        found = []
        for number, turns in enumerate(parts):
            part = Sample((turns or (),), sample.label, sample.tools)
            branches = tuple(self._encode([self._written(where, turns, sample)])) if turns else ()
            reason = self._reason(part, branches) if turns else OVERLONG
            found.append(
                Rendered(
                    where,
                    () if reason else branches,
                    sample.label,
                    reason,
                    part=number,
                    truncated=self.data.overlong == "truncate" and reason is None,
                )
            )
        return found

    def _counter(self, where: str, sample: Sample) -> Callable[[tuple[Message, ...]], int]:
        return lambda turns: len(self._encode([self._written(where, turns, sample)])[0])

    def _as_document(self, tokens: Tokens) -> Tokens:
        """A document with the tokens that the tokenizer puts around a text, ended by EOS."""
        ids = self.tokenizer.build_inputs_with_special_tokens(tokens.ids.tolist())
        if ids[-1] != self.tokenizer.eos_token_id:
            ids.append(self.tokenizer.eos_token_id)
        return Tokens(np.asarray(ids, np.int32), np.ones(len(ids), np.float32))


def place(spans: Sequence[tuple[int, int, float]], offsets: np.ndarray) -> np.ndarray:
    """The weight of each token [T] from spans of characters and the tokens' character offsets [T, 2].

    A token that begins before a span is not in it: such a token stands partly in the prompt.
    """
    weight = np.zeros(len(offsets), np.float32)
    for start, end, value in spans:
        weight[(offsets[:, 0] >= start) & (offsets[:, 0] < end) & (offsets[:, 1] <= end)] = value
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
    rows = source.read(one)
    format_: Format | None = None
    while chunk := list(islice(rows, CHUNK_ROWS)):
        format_ = format_ or format_of(one, chunk[0][1], chunk[0][0])
        yield chunk, format_


def rendered(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Rendered]:
    """The samples of data.train, in file order, as the model will see them. The tokenizer need not be prepared."""
    template: Template = recipe.data.template
    renderer = Renderer(recipe.data, recipe.objective, template.prepare(tokenizer))
    for one in recipe.data.train:
        for rows, format_ in chunks(one):
            yield from renderer.render(rows, format_)
