"""Rows of several answers to the same prompt, from the best to the worst."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from tunesmith.errors import Skipped
from tunesmith.formats import _answers, _turns
from tunesmith.formats._fields import Fields, described
from tunesmith.formats._tags import Tags
from tunesmith.seams import Format
from tunesmith.types import Message, Sample

ORDERS = {"scores": -1, "ranks": 1}  # columns of numbers that order the answers: the highest first, the lowest first
TOO_FEW = "fewer than two answers"
ALL_TIED = "all answers are ranked the same"


class Ranked(Format):
    """A prompt with several `answers`, the best first, of which the answers alone are learned.

    Numbers in `scores` (the highest is the best) or in `ranks` (the lowest is the best), one for each answer, put them
    in order. Of answers with the same number the first is kept and the others are counted and left out, since none is
    better. The prompt and each answer are written as in the format `pairs`.

    ```yaml
    prompt: Which is heavier, a pound of lead or a pound of feathers?
    answers: [The lead., Neither; both are a pound., Neither.]
    scores: [1, 9, 6.5]
    ```
    """

    required: ClassVar[tuple[str, ...]] = ("answers",)

    only: Literal["chosen"] | None = None
    """Read the best answer alone, as the answer of an ordinary conversation."""
    tags: Tags = Tags()
    """Other names of the keys and speakers."""

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has answers and numbers beside them; without those, they may be equally good."""
        return super().fits(row) and bool(row.keys() & ORDERS.keys())

    def branches(self) -> tuple[str, ...]:
        """What the branches are: a better and a worse conversation, and worse ones; or the one that is read."""
        return ("answer",) if self.only else ("chosen", "rejected")

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError, and Skipped where no answer is better than another one."""
        fields = Fields(row)
        answers = [self._answer(place, one) for place, one in enumerate(fields.items("answers"))]
        if len(answers) < 2:
            raise Skipped(TOO_FEW)
        prompt = _answers.prompt(fields, self.tags)
        if prompt is None:
            raise fields.wrong(
                "answers", "has no prompt: no prompt, messages, conversations, question or instruction is there"
            )
        order = _order(fields, len(answers))
        if len(order) < 2:
            raise Skipped(ALL_TIED)
        if not self.only:
            prompt = _answers.unlearned(prompt)
        branches = tuple(_answers.whole(fields, (*prompt, *answers[place])) for place in order)
        if self.only:
            return Sample(branches[:1], tools=_turns.tools(fields))
        return Sample(branches, tools=_turns.tools(fields), ties=len(answers) - len(order))

    def _answer(self, place: int, value: Any) -> tuple[Message, ...]:
        key = f"answers[{place}]"
        return _answers.answer(Fields({key: value}), key, self.tags)


def _order(row: Fields, number: int) -> list[int]:
    """The places of the answers, the best first, without those that are as good as an earlier one."""
    said = [key for key in ORDERS if row.values.get(key) is not None]
    if not said:
        return list(range(number))
    if len(said) > 1:
        raise row.wrong("ranks", "stands beside scores, and one of them orders answers: `columns: {ranks: ''}`")
    (key,) = said
    values = row.items(key)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise row.wrong(key, f"must hold numbers and has {described(value)}", "must hold numbers")
    if len(values) != number:
        raise row.wrong(key, f"has {len(values)} numbers for {number} answers", "has not one number for each answer")
    first = {value: place for place, value in reversed(list(enumerate(values)))}
    return [first[value] for value in sorted(first, key=lambda value: ORDERS[key] * value)]
