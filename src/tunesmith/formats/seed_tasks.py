"""Tasks with an example, from which Self-Instruct makes others."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.formats import _answers
from tunesmith.formats._fields import Fields
from tunesmith.seams import Format
from tunesmith.types import Message, Sample

NO_INPUT = "<noinput>"  # what Self-Instruct writes for none


class SeedTasks(Format):
    """An `instruction` and its `instances`, a list of one `input` and `output`, as in Self-Instruct (Wang 2022).

    A task with several instances is refused, as one conversation cannot hold them: write a row for each.

    ```yaml
    instruction: Say what the opposite of the word is.
    instances: [{input: early, output: late}]
    is_classification: false
    ```
    """

    required: ClassVar[tuple[str, ...]] = ("instruction", "instances")

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        fields = Fields(row)
        instruction, instances = fields.text("instruction"), fields.objects("instances")
        if len(instances) != 1:
            raise fields.wrong(
                "instances",
                f"has {len(instances)} examples, and a sample is one conversation: write a row for each",
                "has another number of examples than one",
            )
        given = instances[0].optional_text("input")
        asked = Fields({"instruction": instruction, "input": None if given == NO_INPUT else given})
        turns = (*_answers.instruction(asked), Message("assistant", instances[0].text("output")))
        return Sample((_answers.whole(fields, turns),))
