"""From rows to tokens: ids and what is trained of them come from one function; every row is accounted for."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.component import name_of
from tunesmith.data import loss, overlong, parity, refuse, registry, shared, sides, source
from tunesmith.data.loss import Learned
from tunesmith.data.mismatched import answer_begins
from tunesmith.data.place import weigh
from tunesmith.data.rendered import Rendered, losing, refused
from tunesmith.errors import DataError, ModelError, RecipeError, Skipped, TemplateError
from tunesmith.formats.auto import Auto, choose
from tunesmith.recipe import Recipe
from tunesmith.recipe_data import Data, Loss, Source
from tunesmith.seams import Format, Objective, Template
from tunesmith.types import Message, Sample, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = tuple[str, Mapping[str, Any]]  # where it stands, and its columns

CHUNK_ROWS = 512  # rows that are tokenised in one call

EMPTY_ANSWER = "empty answer"
EMPTY_TEXT = "empty text"
OVERLONG = "longer than data.max_tokens"
OVERLONG_PROMPT = "prompt alone longer than data.max_tokens"
EQUAL_ANSWERS = "two of its answers are the same"


Part = tuple[Sample, tuple[Learned, ...]]  # one conversation of a row, or several to compare; no text of a document


@dataclass(frozen=True)
class Renderer:
    """Renders rows for an objective. The tokenizer is one that the template prepared.

    `to_look` renders rows that the objective cannot learn from too, as a preview shows them.
    """

    data: Data
    objective: Objective
    tokenizer: "PreTrainedTokenizerBase"
    to_look: bool = False

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {self.tokenizer.name_or_path} does not say where its tokens stand in a "
                "text, and what is trained is found by that: use a fast one (with a tokenizer.json)"
            )
        if type(self.objective).encodes:
            sides.refuse(self.data, self.objective, self.tokenizer)
        if type(self.objective).documents and self.data.loss != Loss():
            raise RecipeError(f"data.loss: the objective {name_of(self.objective)} learns every token: leave it out")
        if self.data.loss.train_on_prompt and self.data.template.divides():
            raise RecipeError(
                "data.loss.train_on_prompt learns every token, and "
                f"data.template={name_of(self.data.template)} writes turns several times: choose one of them"
            )

    def render(self, rows: Sequence[Row], format_: Format, first: bool = True) -> list[Rendered]:
        """The samples of some rows, in order; `first` says that a source begins with them.

        The first row of a source must be read and written; later ones that cannot be are dropped (see `refuse`).

        Raises:
            DataError: the first row is not of the format, or the objective cannot learn from what it holds.
            TemplateError: the first conversation cannot be written or trained as asked, or training and use would
                see other tokens.
            ModelError: the tokenizer has no eos_token to end a document with.
        """
        if first and not self.to_look and (problem := refuse.unlearnable(format_, self.objective)):
            raise DataError(f"{rows[0][0]}: {problem}")
        read = [self._read(*row, format_, first and number == 0) for number, row in enumerate(rows)]
        parts = [part for one in read if not isinstance(one, Rendered) for part in one]
        documents = iter(self._documents([sample for sample, _ in parts if sample.is_document]))
        encoded = iter(self._encode([text for _, texts in parts for text in texts]))
        looked_at = parity.looked_at([_asked_tokens(one) for one in read], first)
        found: list[Rendered] = []
        for number, ((where, _), one) in enumerate(zip(rows, read, strict=True)):
            if isinstance(one, Rendered):
                found.append(one)
                continue
            own: list[Rendered] = []
            for sample, texts in one:
                if sample.is_document:
                    own += self._judge(where, sample, tuple(islice(documents, 1)))
                    continue
                branches, joined = zip(*islice(encoded, len(texts)), strict=True)
                if number in looked_at and not self._encodes:
                    parity.check(self.tokenizer, where, sample, texts, branches)
                own += self._judge(where, sample, branches, sum(joined))
            if any(map(self._says_special, (sample for sample, _ in one))):
                own = [replace(some, special_said=True) for some in own]
            if one[0][0].ties:
                own = [replace(some, tied_answers=one[0][0].ties) for some in own]
            if self._encodes and any(sides.learns_earlier(sample) for sample, _ in one):
                own = [replace(some, earlier_read=True) for some in own]
            found += self._in_samples(own) if len(one) == 1 else self._as_parts(own)
        asking = (one.branches[self._encodes :] for one in found)  # what an encoder reads asks nothing
        assert all(tokens.trained for branches in asking for tokens in branches), "a kept sample asks something"
        return found

    def _read(self, where: str, row: Mapping[str, Any], format_: Format, must: bool) -> list[Part] | Rendered:
        """The conversations of a row as text, or why it is left out. One that must be read is an error then."""
        try:
            sample = format_.read(row)
            if not self.to_look and (problem := self.objective.problem(sample.label)):
                raise RecipeError(f"{where}: {problem}")
            reason = refuse.media(where, sample)
            return self._parts(sample) if reason is None else Rendered(where, (), dropped=reason)
        except Skipped as skipped:
            return Rendered(where, (), dropped=skipped.reason)
        except (DataError, TemplateError) as error:
            if must:
                raise type(error)(f"{where}: {error}", error.reason) from error
            return refused(where, error)

    def _parts(self, sample: Sample) -> list[Part]:
        """What a sample is trained as: itself, or the conversations that the template divides it into."""
        if self._encodes:
            return sides.parts(self.data.template, sample, self.tokenizer)
        if sample.is_document:
            return [(sample, ())]
        if self._reads_all:  # all of it is learned, so nothing is asked of single turns
            return [(sample, tuple(self._write(_untrained(turns), sample) for turns in sample.branches))]
        branches = sample.branches
        if self._chooses or any(turn.spans is not None for turns in branches for turn in turns):
            branches = tuple(loss.resolve(self.data.loss, turns) for turns in branches)
        divided = [self.data.template.divide(turns) for turns in branches]
        if len(branches) > 1:
            if any(len(conversations) > 1 for conversations in divided):
                raise TemplateError(
                    f"data.template={name_of(self.data.template)} makes a conversation of each trained turn, and rows "
                    "that compare answers must train one: give the others `train: false`"
                )
            divided = [tuple(turns for (turns,) in divided)]
            whole = [replace(sample, branches=divided[0])]
        else:
            whole = [replace(sample, branches=(turns,)) for turns in divided[0]]
        return [(one, tuple(self._write(turns, one) for turns in one.branches)) for one in whole]

    @cached_property
    def _reads_all(self) -> bool:
        """Whether a conversation is learned from as a whole, with no regard to who says what."""
        kind = type(self.objective)
        return kind.documents or "label" in kind.needs

    @cached_property
    def _chooses(self) -> bool:
        return self.data.loss != Loss()

    @cached_property
    def _encodes(self) -> bool:
        return type(self.objective).encodes

    def _documents(self, samples: Sequence[Sample]) -> list[Tokens]:
        """Documents with the tokens that the tokenizer puts around a text, each ended by EOS."""
        if not samples:
            return []
        end = self.data.template.document_end(self.tokenizer)
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

    def _says_special(self, sample: Sample) -> bool:
        """Whether a text of a row has what the tokenizer reads as a special token, whoever wrote it."""
        said = (text for turns in sample.branches for turn in turns for text in (turn.content, turn.reasoning))
        return any(isinstance(text, str) and self._special.search(text) for text in said)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        tokens = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return re.compile("|".join(re.escape(token) for token in tokens if token.strip()) or r"(?!)")

    def _write(self, turns: tuple[Message, ...], sample: Sample) -> Learned:
        return loss.write(self.data.loss, self.data.template, turns, sample.tools, self.tokenizer)

    def _encode(self, written: Sequence[Learned]) -> list[tuple[Tokens, int]]:
        """Tokenise each text once, and place what is learned on the tokens. The number is of `joined_answers`."""
        if self._encodes:
            return sides.encode(written, self.tokenizer, self.objective)
        if not written:
            return []
        encoded = self.tokenizer(
            [one.text for one in written],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        found = []
        for one, ids, encoding in zip(written, encoded["input_ids"], encoded.encodings, strict=True):
            weight, joined = weigh(one, encoding)
            found.append((Tokens(np.asarray(ids, np.int32), weight), joined))
        return found

    def _judge(self, where: str, sample: Sample, branches: tuple[Tokens, ...], joined: int = 0) -> list[Rendered]:
        """Keep, shorten, split or drop a sample."""
        if self._reads_all and not sample.is_document:
            branches = tuple(map(_all_learned, branches))
        reason = (
            sides.reason(sample, branches, self.data.max_tokens) if self._encodes else self._reason(sample, branches)
        )
        if reason == sides.LONG_SOURCE and self.data.overlong == "truncate":
            cut = sides.shortened(sample, branches, self.data.max_tokens, self.tokenizer)
            lost = len(branches[0]) - len(cut[0])
            return [Rendered(where, cut, sample.label, truncated=True, lost_tokens=lost)]
        if reason is None:
            return [Rendered(where, branches, sample.label, joined_answers=joined)]
        if reason == OVERLONG and self.data.overlong != "drop" and len(branches) == 1:
            shorten = self._shortened_document if sample.is_document else self._shortened
            try:
                return losing(shorten(where, sample, branches[0]), len(branches[0]))
            except TemplateError as error:
                return [refused(where, error)]
        judged = len(branches) > 1 or sample.label is not None  # answers to one prompt
        if reason == OVERLONG and judged and max(map(answer_begins, branches)) > self.data.max_tokens:
            reason = OVERLONG_PROMPT
        return [Rendered(where, (), sample.label, reason, lost_tokens=sum(map(len, branches)))]

    def _in_samples(self, found: list[Rendered]) -> list[Rendered]:
        """Samples of several branches with what those have in common."""
        if not self.data.shared_prefix or self._encodes:
            return found
        return [replace(one, branches=shared.branches(one.branches)) if len(one.branches) > 1 else one for one in found]

    def _as_parts(self, found: list[Rendered]) -> list[Rendered]:
        """The conversations that one was divided into, with what each has in common with the one before."""
        numbered: list[Rendered] = []
        before = np.zeros(0, np.int32)
        for number, one in enumerate(found):
            repeated = shared.common(before, one.branches[0].ids) if one.branches else 0
            numbered.append(replace(one, part=number, divided=True, repeated_tokens=repeated))
            before = one.branches[0].ids if one.branches else before
        shares = self.data.shared_prefix and not self._encodes
        return shared.together(numbered, self.data.max_tokens) if shares else numbered

    def _reason(self, sample: Sample, branches: tuple[Tokens, ...]) -> str | None:
        """Why a sample cannot be trained on as it is, if so."""
        if sample.is_document and _is_empty(sample.branches[0][0]):
            return EMPTY_TEXT
        for turns, tokens in zip(sample.branches, branches, strict=True):
            if not tokens.trained:
                return loss.reason(self.data.loss, turns)
        if type(self.objective).documents:
            return None
        if any(turn.weight and _is_empty(turn) for branch in sample.branches for turn in branch):
            return EMPTY_ANSWER
        if len({tokens.ids.tobytes() for tokens in branches}) < len(branches):
            return EQUAL_ANSWERS
        return OVERLONG if max(map(len, branches)) > self.data.max_tokens else None

    def _shortened_document(self, where: str, sample: Sample, tokens: Tokens) -> list[Rendered]:
        pieces = overlong.cut(tokens, self.data.max_tokens)
        if self.data.overlong == "truncate":
            return [Rendered(where, (pieces[0],), sample.label, truncated=True)]
        return [Rendered(where, (piece,), sample.label, part=part) for part, piece in enumerate(pieces)]

    def _shortened(self, where: str, sample: Sample, whole: Tokens) -> list[Rendered]:
        """A conversation that is too long, truncated or split as the recipe says. Raises TemplateError."""
        turns, limit = sample.branches[0], self.data.max_tokens

        def count(turns: tuple[Message, ...]) -> int:
            return len(self._encode([self._write(_untrained(turns), sample)])[0][0])

        if self.data.overlong == "split":
            parts = overlong.split(turns, count, limit)
        else:
            parts = [overlong.truncate(turns, count, limit, self.tokenizer)]
        found = []
        for number, part in enumerate(parts):
            if part is None:
                found.append(Rendered(where, (), sample.label, OVERLONG, part=number))
                continue
            tokens, joined = self._encode([self._write(part, sample)])[0]
            tokens = _all_learned(tokens) if self._reads_all else tokens
            reason = self._reason(Sample((part,), sample.label, sample.tools), (tokens,))
            if reason is not None:
                found.append(Rendered(where, (), sample.label, reason, part=number))
                continue
            truncated = self.data.overlong == "truncate"
            found.append(
                Rendered(where, (tokens,), sample.label, part=number, truncated=truncated, joined_answers=joined)
            )
        return found


def _all_learned(tokens: Tokens) -> Tokens:
    return Tokens(tokens.ids, np.ones(len(tokens), np.float32))


def _untrained(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(replace(turn, train=False) for turn in turns)


def _is_empty(turn: Message) -> bool:
    """Whether a turn says nothing: no text but blanks, no tool calls, no reasoning."""
    blank = not turn.content.strip() if isinstance(turn.content, str) else not turn.content
    return blank and not turn.tool_calls and not turn.reasoning


def _asked_tokens(read: list[Part] | Rendered) -> int:
    """About how many tokens are written to compare a row: its text, and what stands before each answer."""
    if isinstance(read, Rendered):
        return 0
    return sum(len(text.text) * (2 + len(text.answers)) for _, texts in read for text in texts) // 8


def format_of(one: Source, row: Mapping[str, Any], where: str) -> Format:
    """The format of a source: as the recipe says, or chosen by its first row.

    Raises:
        DataError: the row fits no format, or `columns` names what the format does not read.
    """
    try:
        format_ = choose(row) if isinstance(one.format, Auto) else one.format
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if (problem := refuse.unread(one, format_, row)) is not None:
        raise DataError(f"{where}: {problem}")
    return format_


def format_notes(name: str, one: Source, format_: Format) -> list[str]:
    """What is said of the format of a source, by the source's name in the account: that it was chosen, if it was."""
    return [f"{name}: read as {name_of(format_)} (format: auto)"] if format_ != one.format else []


def chunks(one: Source, rows: Iterator[Row]) -> Iterator[tuple[list[Row], Format]]:
    """The rows of a source, some at a time, with its format. Raises DataError when the first row fits none."""
    format_: Format | None = None
    while chunk := list(islice(rows, CHUNK_ROWS)):
        format_ = format_ or format_of(one, chunk[0][1], chunk[0][0])
        yield chunk, format_


def rendered(
    recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", opened: Callable[[Source, Format], None] | None = None
) -> Iterator[Rendered]:
    """The samples of data.train, in file order, as the model will see them, for any tokenizer.

    Where `opened` is given, it is called with each source and its format, and rows that the objective cannot learn
    from are rendered too.

    Raises:
        DataError, TemplateError, ModelError, RecipeError: as `source.read`, `Renderer` and `Renderer.render`.
    """
    recipe = registry.applied(recipe)
    template: Template = recipe.data.template
    ready = sides.prepared(template, recipe.objective, tokenizer)
    renderer = Renderer(recipe.data, recipe.objective, ready, to_look=opened is not None)
    for one in recipe.data.train:
        tolerance = refuse.Tolerance()
        for number, (rows, format_) in enumerate(chunks(one, source.read(one))):
            if opened is not None and number == 0:
                opened(one, format_)
            found = renderer.render(rows, format_, first=number == 0)
            tolerance.look(found)
            yield from found
        tolerance.end()
