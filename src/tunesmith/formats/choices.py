"""Rows of multiple-choice questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from string import ascii_uppercase
from typing import Any, Literal

from tunesmith.formats import _answers
from tunesmith.formats._fields import Fields, described
from tunesmith.seams import Format
from tunesmith.types import Message, Sample

Columns = tuple[str, str]  # of the question and of the answer

NAMES: Sequence[Columns] = (("Question", "Answer"), ("question", "answer"))


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the options to choose from, and the number of the right one."""

    text: str
    options: tuple[str, ...]
    right: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Question":
        """The question of a row. Raises DataError."""
        fields = Fields(row)
        asked, answered = _columns(row) or NAMES[0]
        text, options = fields.text(asked), _options(fields)
        return cls(text, tuple(options), _right(fields, answered, len(options)))

    @property
    def letters(self) -> str:
        """What the options are called."""
        return ascii_uppercase[: len(self.options)]

    @property
    def lines(self) -> list[str]:
        """The options with their letters."""
        return [f"{letter}. {option}" for letter, option in zip(self.letters, self.options, strict=True)]


class Choices(Format):
    """A question, its options in the columns `A`, `B` and so on, and the letter of the right one in `Answer`.

    The columns are those of CMMLU and C-Eval. `question` and `answer` may be in small letters, the options may be
    a list in `choices`, and the answer may be a number, counted from 0, as in MMLU. The options are listed under the
    question.

    ```yaml
    Question: Which of these is a bird?
    A: The bat
    B: The heron
    C: The flying fish
    Answer: B
    ```
    """

    answer_with: Literal["letter", "text", "both"] = "letter"
    """Whether the answer is the letter of the right option, its text, or both."""

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has a question, an answer, and options as columns or as a list."""
        return _columns(row) is not None and (row.keys() >= {"A", "B"} or "choices" in row)

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        asked = Question.of(row)
        right = asked.right
        answers = {"letter": asked.letters[right], "text": asked.options[right], "both": asked.lines[right]}
        turns = (
            Message("user", "\n".join([asked.text, *asked.lines])),
            Message("assistant", answers[self.answer_with]),
        )
        return Sample((_answers.whole(Fields(row), turns),))


def _columns(row: Mapping[str, Any]) -> Columns | None:
    return next((pair for pair in NAMES if row.keys() >= set(pair)), None)


def _options(row: Fields) -> list[str]:
    if "choices" in row.values:
        options = [Fields({f"choices[{number}]": one}) for number, one in enumerate(row.items("choices"))]
        texts = [option.text(key) for option in options for key in option.values]
        wrong = "choices"
    else:
        wrong = "B"
        there = list(takewhile(lambda letter: row.values.get(letter) not in (None, ""), ascii_uppercase))
        texts = [_cell(row, letter) for letter in there]
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise row.wrong(
            wrong, f"gives {len(texts)} options to choose from, and there must be 2 to {len(ascii_uppercase)}"
        )
    return texts


def _cell(row: Fields, column: str) -> str:
    """The text of an option, which a table may have as a number."""
    value = row.values[column]
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else row.text(column)


def _right(row: Fields, column: str, options: int) -> int:
    """The number of the right option."""
    if column not in row.values:
        raise row.wrong(column, "is missing")
    value = row.values[column]
    letters = ascii_uppercase[:options]
    if isinstance(value, str):
        said = value.strip().upper()
        if len(said) == 1 and said in letters:
            return letters.index(said)
    numbered = str(value).strip()
    if "choices" in row.values and not isinstance(value, bool) and numbered.isascii() and numbered.isdigit():
        if int(numbered[:3]) < options:
            return int(numbered)
    raise row.wrong(column, f"must be a letter from A to {letters[-1]} and is {described(value)}")
