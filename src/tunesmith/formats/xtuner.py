"""Rows of exchanges with input and output, as XTuner has them."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.formats import _answers
from tunesmith.formats._fields import Fields, described
from tunesmith.seams import Format
from tunesmith.types import Message, Sample


class Xtuner(Format):
    """A `conversation` of exchanges, each an `input` and its `output`; the first may have a `system` message.

    An exchange with `output_with_loss: false` is not learned.

    ```yaml
    conversation:
      - {system: You are a gardener., input: "When are tulips planted?", output: In autumn.}
      - {input: "And how deep?", output: Three times as deep as the bulb is high.}
    ```
    """

    required: ClassVar[tuple[str, ...]] = ("conversation",)

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        fields = Fields(row)
        exchanges = fields.objects("conversation")
        if not exchanges:
            raise fields.wrong("conversation", "is an empty list")
        system = exchanges[0].optional_text("system")
        turns = [Message("system", system)] if system else []
        for exchange in exchanges:
            other = exchange.optional_text("system")
            if other and other != system:
                raise exchange.wrong(
                    "system",
                    f"({other!r:.40}) is another system message than the first exchange has: keep one",
                    "is another system message than the first exchange has",
                )
            turns.append(Message("user", exchange.text("input")))
            turns.append(Message("assistant", exchange.text("output"), train=_train(exchange)))
        return Sample((_answers.whole(fields, tuple(turns)),))


def _train(exchange: Fields) -> bool | None:
    said = exchange.values.get("output_with_loss")
    if said is not None and not isinstance(said, bool):
        raise exchange.wrong("output_with_loss", f"must be true or false and is {described(said)}")
    return said
