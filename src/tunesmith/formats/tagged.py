"""Rows of words, each with a class, as sets for named entities and parts of speech have them."""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, ClassVar

from tunesmith.formats import _names, _write
from tunesmith.formats._fields import Fields, described
from tunesmith.seams import Format
from tunesmith.types import Message, Sample


class Tagged(Format):
    """Words in `tokens`, and beside them in `tags` the class of each: its number, counted from 0, or its name.

    The words are joined to a text; a class is learned where the first token of its word stands.

    ```yaml
    tokens: [Anna, lives, in, New, York]
    tags: [1, 0, 0, 2, 3]
    ```
    """

    required: ClassVar[tuple[str, ...]] = ("tokens", "tags")
    of_words: ClassVar[bool] = True

    classes: _names.Names = ()
    """Names of the classes in the order of their numbers, where tags are names or a model is to know them."""
    joined_by: str = " "
    """What stands between two words; nothing where a language writes none, as Chinese."""

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row has as many words as tags, in lists."""
        lists = [row.get(key) for key in cls.required]
        return all(isinstance(one, list | tuple) for one in lists) and len({len(one) for one in lists if one}) == 1

    def class_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.classes

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        fields = Fields(row)
        words, tags = fields.items("tokens"), fields.items("tags")
        wrong = [one for one in words if not isinstance(one, str) or not one]
        if wrong:
            raise fields.wrong("tokens", f"must be a list of words and has {described(wrong[0])}")
        if len(words) != len(tags):
            raise fields.wrong("tags", f"are {len(tags)}, and there are {len(words)} words", "are not as many as words")
        text = Fields({"tokens": self.joined_by.join(words)}).text("tokens")
        starts = accumulate((len(word) + len(self.joined_by) for word in words), initial=0)
        numbers = (_names.number(fields, "tags", one, self.classes) for one in tags)
        spans = zip(starts, words, numbers, strict=False)
        return Sample(
            ((Message("text", text),),), words=tuple((start, start + len(word), one) for start, word, one in spans)
        )

    def write(self, sample: Sample) -> dict[str, Any]:
        """The row of words with their classes. Raises DataError."""
        _write.refuse("tagged", sample, documents=True, words=True)
        text = _write.texts_alone("tagged", sample.branches[0])[0]
        words = [text[start:end] for start, end, _ in sample.words]
        tags = [self.classes[number] if self.classes else number for *_, number in sample.words]
        return _write.finished(self, sample, {"tokens": words, "tags": tags})
