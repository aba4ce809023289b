"""Rows of sums in words, whose answers end in a line with the result."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from tunesmith.formats._fields import Fields, described
from tunesmith.seams import Format
from tunesmith.types import Message, Sample

RESULT = re.compile(r"\n#### [^\n]+\s*\Z")
SUM = re.compile(r"<<[^<>]*>>")


class Gsm8k(Format):
    """A `question` and an `answer` that ends in a line with `#### ` and the result, as GSM8K (Cobbe et al. 2021) has.

    ```yaml
    question: Ann has three boxes of four eggs. She eats two. How many are left?
    answer: |-
      Ann has 3 * 4 = <<3*4=12>>12 eggs.
      She has 12 - 2 = <<12-2=10>>10 left.
      #### 10
    ```
    """

    required: ClassVar[tuple[str, ...]] = ("question", "answer")

    calculator: Literal["keep", "drop"] = "keep"
    """What happens to the sums in <<...>>, which were made for models with a calculator."""

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether the answer of a row ends in its result."""
        return super().fits(row) and isinstance(row["answer"], str) and bool(RESULT.search("\n" + row["answer"]))

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        fields = Fields(row)
        question, answer = fields.text("question"), fields.text("answer")
        if not RESULT.search("\n" + answer):
            end = described(answer[-40:])
            raise fields.wrong("answer", f"must end in a line of #### and the result and ends in {end}")
        if self.calculator == "drop":
            answer = SUM.sub("", answer)
        return Sample(((Message("user", question), Message("assistant", answer)),))
