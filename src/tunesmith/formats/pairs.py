"""Rows of a better and a worse answer to the same prompt."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.errors import DataError
from tunesmith.formats import _answers, _turns, _write
from tunesmith.formats._fields import Fields, described
from tunesmith.formats._tags import OPENAI, Tags
from tunesmith.seams import Format
from tunesmith.types import Message, Sample

ANSWERS = ("chosen", "rejected")


class Pairs(Format):
    """A prompt with the answers `chosen` and `rejected`, of which the answers alone are learned.

    The prompt is in `conversations` or `messages`, in `prompt` or `question` (a text or messages), or in
    `instruction` and `input`. An answer is a text, a message or a list of them. Where both answers begin with a
    turn that is not the assistant's they are whole conversations, and their common beginning is the prompt.
    `system` and `tools` as in the format `messages`.

    ```yaml
    prompt: Which is heavier, a pound of lead or a pound of feathers?
    chosen: Neither; both are a pound.
    rejected: The lead.
    system: You answer briefly.
    ```
    """

    required: ClassVar[tuple[str, ...]] = ANSWERS

    only: Literal["chosen", "rejected"] | None = None
    """Read one of the answers alone, as the answer of an ordinary conversation."""
    margin: Annotated[str, Field(min_length=1)] | None = None
    """Column that says by how much the chosen answer is better, 0 or more, for objective: reward. None: not read."""
    tags: Tags = Tags()
    """Other names of the keys and speakers."""

    def branches(self) -> tuple[str, ...]:
        """What the branches are: the chosen and the rejected conversation, or the one that is read."""
        return ("answer",) if self.only else ANSWERS

    def labels(self) -> bool:
        """Whether samples have a label: the margin."""
        return self.margin is not None and not self.only

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        fields = Fields(row)
        answers = [_answers.said(fields, key, self.tags, "assistant") for key in ANSWERS]
        if any(turns[0].role in ("user", "system") for turns in answers):
            prompt, answers = self._divided(fields, answers)
        else:
            asked = _answers.prompt(fields, self.tags)
            if asked is None:
                raise fields.wrong(
                    "chosen", "has no prompt: no prompt, messages, conversations or instruction is there"
                )
            prompt, answers = asked, [_answers.answer(fields, key, self.tags) for key in ANSWERS]
        if not self.only:
            prompt = _answers.unlearned(prompt)
        chosen, rejected = (_answers.whole(fields, (*prompt, *answer)) for answer in answers)
        branches = {None: (chosen, rejected), "chosen": (chosen,), "rejected": (rejected,)}[self.only]
        return Sample(branches, self._margin(fields), _turns.tools(fields))

    def _margin(self, row: Fields) -> float | None:
        """The margin of a row. Raises DataError when it is no number of 0 or more."""
        if not self.labels():
            return None
        assert self.margin is not None, "labels says so"
        if self.margin not in row.values:
            raise row.wrong(self.margin, "is missing")
        value = row.values[self.margin]
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, bool) or not 0 <= number < math.inf:
            raise row.wrong(self.margin, f"must be a number of 0 or more and is {described(value)}")
        return number

    def _divided(
        self, row: Fields, conversations: list[tuple[Message, ...]]
    ) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
        """The common beginning of two conversations, and what follows it in each."""
        most = min(map(len, conversations)) - 1  # each has an answer of its own
        common = 0
        while common < most and conversations[0][common] == conversations[1][common]:
            common += 1
        if common == 0:
            raise row.wrong("chosen", "and column 'rejected' have no beginning in common, which would be the prompt")
        for key, turns in zip(ANSWERS, conversations, strict=True):
            if not any(turn.role == "assistant" for turn in turns[common:]):
                raise row.wrong(key, "has no answer after what both conversations begin with")
        return conversations[0][:common], [turns[common:] for turns in conversations]

    def write(self, sample: Sample) -> dict[str, Any]:
        """The row of two conversations that begin with the same turns. Raises DataError."""
        _write.refuse("pairs", sample, branches=True, tools=True, **({"label": True} if self.labels() else {}))
        if self.only:
            raise DataError(f"the format pairs writes two answers, and `only: {self.only}` says one")
        first, second = sample.branches
        common = _prompt_length(first, second)
        row: dict[str, Any] = {"prompt": _turns.written(first[:common], OPENAI)} if common else {}
        for key, turns in zip(ANSWERS, (first, second), strict=True):
            row[key] = _turns.written(turns[common:], OPENAI)
        if self.margin is not None:
            row[self.margin] = sample.label
        return _write.finished(self, sample, row)


def _prompt_length(first: tuple[Message, ...], second: tuple[Message, ...]) -> int:
    """How many turns of two conversations are a prompt beside answers that begin with an assistant's turn."""
    common = 0
    for one, other in zip(first, second, strict=False):
        if one != other or one.weight or one.spans:
            break
        common += 1
    while common and not (
        first[common - 1].role != "assistant"
        and all(turns[common : common + 1] and turns[common].role == "assistant" for turns in (first, second))
    ):
        common -= 1
    return common
