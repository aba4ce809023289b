"""Perplexity by length: how well the same tokens are foretold behind a short and behind a long beginning."""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tunesmith.seams import Task, TaskResult

if TYPE_CHECKING:
    from tunesmith.generate.subject import Subject

Length = Annotated[int, Field(ge=16, le=10_000_000)]


class PplByLength(Task):
    """Perplexity of the last tokens of windows of some lengths, which end at the same places of a text.

    What differs between two lengths is the beginning alone: where a model reads as far, the perplexity does not rise.
    """

    lower_is_better: ClassVar[bool] = True

    data: str | None = None
    """File of long texts: a txt, or rows with `text`. None: stories and facts of this package's own corpus."""
    lengths: Annotated[tuple[Length, ...], Field(min_length=1)] = (512, 1024, 2048, 4096, 8192)
    """Tokens of a window."""
    last_tokens: Annotated[int, Field(gt=0)] = 256
    """Tokens at the end of a window that count; less where the shortest window has no more."""
    num_windows: Annotated[int, Field(gt=0)] = 8
    """Places of the text where windows end."""

    def digest(self) -> str:
        """What tells the texts from others."""
        from tunesmith.evaluation import _texts

        return _texts.digest(self.data)

    def run(self, subject: "Subject") -> TaskResult:
        """Read the windows, the short ones first.

        Raises:
            DataError: the text cannot be read, or is shorter than the longest window.
        """
        from tunesmith.evaluation import _texts

        lengths = sorted(set(self.lengths))
        longest, begin = lengths[-1], subject.begin
        counted = min(self.last_tokens, lengths[0] - len(begin) - 1)
        text = _texts.stream(subject, self.data, longest + (self.num_windows - 1) * counted)
        step = (len(text) - longest) // max(1, self.num_windows - 1)
        ends = [longest + number * step for number in range(self.num_windows)]
        table, items = [], []
        for length in lengths:
            windows = [(*begin, *text[end - length + len(begin) : end]) for end in ends]
            lost = [-one.double().mean().item() for one in subject.logps([(one, counted) for one in windows])]
            table.append({"length": length, "perplexity": math.exp(math.fsum(lost) / len(lost))})
            items += [{"length": length, "end": end, "loss": loss} for end, loss in zip(ends, lost, strict=True)]
        metrics = {f"perplexity_{row['length']}": row["perplexity"] for row in table}
        return TaskResult(metrics, tuple(table), tuple(items))
