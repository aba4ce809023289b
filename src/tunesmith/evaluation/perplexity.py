"""Perplexity of texts, read in windows that overlap: by token, and by byte, which does not depend on the tokenizer."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.evaluation._shares import resampled
from tunesmith.seams import Task, TaskResult

if TYPE_CHECKING:
    from tunesmith.generate.subject import Subject

USUAL_TOKENS = 2048  # of a window, where the model reads as far


class Perplexity(Task):
    """Perplexity of texts: each token is asked once, behind what stands before it in its window.

    A text begins behind the token that the tokenizer begins texts with, or the one that ends them.
    """

    lower_is_better: ClassVar[bool] = True

    data: str | None = None
    """File, folder, glob or hub id of the texts: a txt is one of them, of others each row has one in `text`. None:
    stories and facts of this package's own corpus."""
    num_samples: Annotated[int, Field(gt=0)] | None = None
    """Texts, the first ones; a txt is one, however many lines it has. None: all of a file, or 64 made ones."""
    max_tokens: Annotated[int, Field(ge=2, le=10_000_000)] | None = None
    """Tokens of a window. None: what the model was made for, at most 2,048."""
    stride: Annotated[int, Field(gt=0)] | None = None
    """Tokens that a window is ahead of the one before it, which are those that count in it. None: half a window."""

    def digest(self) -> str:
        """What tells the texts from others."""
        from tunesmith.evaluation import _texts

        return _texts.digest(self.data)

    def run(self, subject: "Subject") -> TaskResult:
        """Read the texts. The intervals are drawn from whole texts, or the windows of one.

        Raises:
            DataError: they cannot be read, or have nothing to ask for.
            RecipeError: windows leave tokens out between them.
        """
        from tunesmith.errors import DataError
        from tunesmith.evaluation import _texts

        texts = _texts.some(self.data, self.num_samples)
        plan = [(number, window) for number, text in enumerate(texts) for window in self._windows(subject, text)]
        if not plan:
            raise DataError(f"{self.data} has no text that has a token to ask for: say another file")
        found = subject.logps([window for _, window in plan])
        items: list[dict[str, Any]] = [
            {"text": number, "tokens": asked, "nll": -logps.double().sum().item()}
            for (number, (_, asked)), logps in zip(plan, found, strict=True)
        ]
        lost, tokens = (math.fsum(item[name] for item in items) for name in ("nll", "tokens"))
        sizes = {number: len(texts[number].encode()) for number, _ in plan}
        return _result(items, lost, tokens, sum(sizes.values()))

    def _windows(self, subject: "Subject", text: str) -> list[tuple[Sequence[int], int]]:
        """The windows of a text, each with the number of its last tokens that count."""
        from tunesmith.errors import RecipeError

        size = self.max_tokens or min(subject.context_tokens or USUAL_TOKENS, USUAL_TOKENS)
        begin, end = subject.begin, subject.tokenizer.eos_token_id
        stride = self.stride or max(1, size // 2)
        if stride > size - len(begin) - 1:
            raise RecipeError(f"stride: windows of {size} tokens are at most {size - len(begin) - 1} apart ({stride})")
        ids = [*(begin or (() if end is None else (end,))), *subject.ids(text)]
        last = min(size, len(ids))
        found: list[tuple[Sequence[int], int]] = [(ids[:last], last - 1)] if last > 1 else []
        while last < len(ids):
            before, last = last, min(last + stride, len(ids))
            found.append(([*begin, *ids[last - size + len(begin) : last]], last - before))
        return found


def _result(items: Sequence[dict[str, Any]], lost: float, tokens: float, size: int) -> TaskResult:
    """The numbers of some windows that lost so much in all, on so many tokens and bytes."""
    by_text = [list(some) for _, some in groupby(items, key=lambda item: item["text"])]
    groups = by_text if len(by_text) > 1 else [[item] for item in items]
    per_byte = tokens / size
    metrics = {
        "perplexity": math.exp(lost / tokens),
        "byte_perplexity": math.exp(lost / size),
        "bits_per_byte": lost / size / math.log(2),
        "tokens": int(tokens),
        "bytes": size,
    }
    intervals = {}
    if len(groups) > 1:
        sums = [(math.fsum(one["nll"] for one in some), sum(one["tokens"] for one in some)) for some in groups]
        ends = resampled(sums)
        intervals["perplexity"] = (math.exp(ends[0]), math.exp(ends[1]))
        intervals["byte_perplexity"] = (math.exp(ends[0] * per_byte), math.exp(ends[1] * per_byte))
        intervals["bits_per_byte"] = (ends[0] * per_byte / math.log(2), ends[1] * per_byte / math.log(2))
    return TaskResult(metrics, items=tuple(items), intervals=intervals)
