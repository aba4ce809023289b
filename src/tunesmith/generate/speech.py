"""An answer as it is said: reasoning, text and calls of tools in pieces, whoever makes it."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.generate import answer_format
from tunesmith.generate.asked import Sampling
from tunesmith.generate.engine import Generator
from tunesmith.generate.parse import Parser, Said


class Speech(Iterator[Said]):
    """An answer that is made as it is read. `finish` is None until the end, then `stop` or `length`."""

    dropped_turns: int = 0  # of the conversation, the oldest ones, which there was no room for
    finish: str | None = None
    num_tokens: int = 0  # so far

    @abstractmethod
    def close(self) -> None:
        """Make no more of it."""


class Own(Speech):
    """The answer of a model in this process, whose text is read by its template's own format."""

    def __init__(
        self,
        generator: Generator,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        sampling: Sampling,
    ) -> None:
        """Begin it. Raises as `Generator.stream`."""
        written = answer_format.find(generator.tokenizer)
        self._answer = generator.stream(
            messages, tools=tools or None, special=bool(written.special), **sampling.model_dump()
        )
        self.dropped_turns = self._answer.prompt.dropped_turns
        self._parser: Parser | None = Parser(written, tools)

    def __next__(self) -> Said:
        if self._parser is None:
            raise StopIteration
        piece = next(self._answer, None)
        self.num_tokens, self.finish = len(self._answer.ids), self._answer.finish
        if piece is not None:
            return self._parser.feed(piece)
        parser, self._parser = self._parser, None
        return parser.end()

    def close(self) -> None:
        """Make no more of it."""
        self._answer.close()
