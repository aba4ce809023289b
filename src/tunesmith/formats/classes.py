"""Rows of a text and its class."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.errors import DataError
from tunesmith.formats import _answers, _names, _turns, _write
from tunesmith.formats._fields import Fields, from_json
from tunesmith.formats._tags import OPENAI
from tunesmith.seams import Format
from tunesmith.types import Label, Sample


class Classes(Format):
    """A `text` (or a conversation as messages) and its `label`: the number of a class, counted from 0, or its name.

    Where several classes, or none, can hold at once the label is a list of them, and `classes` names all there are.

    ```yaml
    text: The soup was cold and the waiter colder.
    label: 0
    ```
    """

    required: ClassVar[tuple[str, ...]] = ("text", "label")

    classes: _names.Names = ()
    """Names of the classes in the order of their numbers, where labels are names."""

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has a text and a label, and no conversation beside them that a label may be of."""
        return super().fits(row) and not row.keys() & set(_answers.CONVERSATIONS)

    def labels(self) -> bool:
        """Every sample has a label."""
        return True

    def class_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.classes

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        fields = Fields(row)
        turns = _answers.said(fields, "text", OPENAI, "text")
        if turns[0].role != "text":
            turns = _answers.whole(fields, turns)
        return Sample((turns,), self._label(fields), _turns.tools(fields))

    def _label(self, row: Fields) -> Label:
        if "label" not in row.values:
            raise row.wrong("label", "is missing")
        said = row.values["label"]
        said = from_json(said) if isinstance(said, str) and said.lstrip().startswith("[") else said
        if not isinstance(said, list | tuple):
            return float(_names.number(row, "label", said, self.classes))
        if not self.classes:
            raise row.wrong("label", "is a list of classes: say `classes: [NAME, ...]`, all there are, in their order")
        holding = {_names.number(row, "label", one, self.classes) for one in said}
        return tuple(float(number in holding) for number in range(len(self.classes)))

    def write(self, sample: Sample) -> dict[str, Any]:
        """The row of a text or a conversation with a label. Raises DataError."""
        _write.refuse("classes", sample, documents=True, label=True, tools=True)
        turns, label = sample.branches[0], sample.label
        assert label is not None
        text = _write.texts_alone("classes", turns)[0] if sample.is_document else _turns.written(turns, OPENAI)
        several = isinstance(label, tuple)
        numbers = [number for number, holds in enumerate(label) if holds] if isinstance(label, tuple) else [label]
        known = len(self.classes) or _names.MOST_CLASSES
        if any(number != int(number) or not 0 <= number < known for number in numbers):
            raise DataError(f"the format classes holds the number of a class, and the label is {label}")
        said = [self.classes[int(number)] if self.classes else int(number) for number in numbers]
        return _write.finished(self, sample, {"text": text, "label": said if several else said[0]})
