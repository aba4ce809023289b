"""Rows of one answer each, labelled good or bad."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from tunesmith.errors import DataError, Skipped
from tunesmith.formats import _answers, _turns, _write
from tunesmith.formats._fields import Fields, described
from tunesmith.formats._tags import OPENAI, Tags
from tunesmith.seams import Format
from tunesmith.types import Message, Sample

BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
ANSWERS = ("completion", "output", "response")  # columns of an answer beside its prompt
BAD = "labelled bad (format.only: good)"


class Labelled(Format):
    """A conversation with a `label`, true or false, of its last answer, which alone is learned.

    The conversation is in `messages` or `conversations`, or is `prompt` and `completion` (each a text or
    messages), or `instruction`, `input` and `output`. The label may be 1 and 0 or the texts of these.

    ```yaml
    messages:
      - {role: user, content: "Which is the longest river of Europe?"}
      - {role: assistant, content: The Danube.}
    label: false
    ```
    """

    required: ClassVar[tuple[str, ...]] = ("label",)
    judges: ClassVar[bool] = True

    only: Literal["good"] | None = None
    """Read the rows labelled good alone, as ordinary conversations; the others are counted and left out."""
    tags: Tags = Tags()
    """Other names of the keys and speakers."""

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has a conversation and a label that is true or false, or null."""
        if "label" not in row or (row["label"] is not None and _boolean(row["label"]) is None):
            return False
        beside = row.keys() & {"prompt", "question", "instruction"} and row.keys() & set(ANSWERS)
        return bool(beside or row.keys() & set(_answers.CONVERSATIONS))

    def labels(self) -> bool:
        """Whether samples have a label."""
        return self.only is None

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError, and Skipped for a row that `only` leaves out."""
        fields = Fields(row)
        if "label" not in row:
            raise fields.wrong("label", "is missing")
        label = _boolean(row["label"])
        if label is None:
            raise fields.wrong("label", f"must be true or false and is {described(row['label'])}")
        if self.only and not label:
            raise Skipped(BAD)
        prompt, answer = self._divided(fields)
        if not self.only:
            prompt = _answers.unlearned(prompt)
        turns = _answers.whole(fields, (*prompt, *answer))
        return Sample((turns,), None if self.only else float(label), _turns.tools(fields))

    def _divided(self, row: Fields) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        """The prompt and the answer."""
        key = next((key for key in _answers.CONVERSATIONS if key in row.values), None)
        if key is not None:
            turns = _turns.turns(row, key, self.tags)
            if turns[-1].role != "assistant":
                raise row.wrong(key, f"ends with the role {turns[-1].role}, and the label is of an answer")
            return turns[:-1], turns[-1:]
        key = next((key for key in ANSWERS if key in row.values), ANSWERS[0])
        prompt = _answers.prompt(row, self.tags)
        if prompt is None:
            raise row.wrong(key, "has no prompt: no messages, conversations, prompt, question or instruction is there")
        return prompt, _answers.answer(row, key, self.tags)

    def write(self, sample: Sample) -> dict[str, Any]:
        """The row of a conversation with a label. Raises DataError."""
        _write.refuse("labelled", sample, label=True, tools=True)
        if sample.label not in (0.0, 1.0):
            raise DataError(f"the format labelled holds good (1) and bad (0), and the label is {sample.label}")
        row: dict[str, Any] = {"messages": _turns.written(sample.branches[0], OPENAI), "label": bool(sample.label)}
        return _write.finished(self, sample, row)


def _boolean(value: Any) -> bool | None:
    """What a label says; None when it is none of the ways to say it."""
    return BOOLEANS.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
