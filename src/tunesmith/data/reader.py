"""One source of a stream: read and rendered some rows at a time, from its beginning to its end, again and again."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tunesmith.data.render import CHUNK_ROWS, Renderer, Row, format_of
from tunesmith.data.rendered import Rendered
from tunesmith.data.workers import Workers
from tunesmith.recipe_data import Source
from tunesmith.seams import Format

LOOK_ROWS = 128  # rows at the beginning of a source that are rendered before a stream begins


@dataclass(frozen=True)
class Opened:
    """A source that a stream may read from its beginning any number of times."""

    source: Source
    name: str  # in the account
    read: Callable[[], Iterator[Row]]
    format: Format  # as the recipe says, or chosen by the first row
    first: list[Rendered]  # the samples of its first rows


def look(source: Source, name: str, read: Callable[[], Iterator[Row]], renderer: Renderer) -> Opened:
    """Render the first rows of a source, which also choose its format.

    Raises:
        DataError, TemplateError, ModelError: as `Renderer.render` and `source.read`.
    """
    rows = list(itertools.islice(read(), LOOK_ROWS))
    format_ = format_of(source, rows[0][1], rows[0][0])
    return Opened(source, name, read, format_, renderer.render(rows, format_))


class Reader:
    """The rows of a source as samples, one row after the other.

    A pass is all of its rows, or `num_samples` of them, for which a smaller source is read more than once. Chunks are
    rendered ahead by the workers; where they begin changes nothing.
    """

    def __init__(self, opened: Opened, workers: Workers, ahead: int) -> None:
        self.opened, self.workers, self.ahead = opened, workers, ahead
        self._source_rows: int | None = None  # once the source was read to its end
        self.seek(0)

    def seek(self, row: int) -> None:
        """Go to a row of a pass; those before it are read and not rendered."""
        self.row = row
        self._rows = itertools.islice(self._pass(), row, None)
        self._waiting: deque[Callable[[], list[Rendered]]] = deque()
        self._ready: deque[list[Rendered]] = deque()

    def peek(self) -> list[Rendered] | None:
        """The samples of the next row, dropped ones too; None at the end of a pass."""
        if not self._ready:
            self._render_ahead()
            if not self._waiting:
                return None
            self._ready.extend(_by_row(self._waiting.popleft()()))
        return self._ready[0]

    def take(self) -> list[Rendered] | None:
        """The same, and go on to the row after it: at the end of a pass, to the first one of the next."""
        found = self.peek()
        if found is None:
            self.seek(0)
            return None
        self.row += 1
        return self._ready.popleft()

    @property
    def is_again(self) -> bool:
        """Whether the next row is one that this pass has had before."""
        return self._source_rows is not None and self.row >= self._source_rows

    def _render_ahead(self) -> None:
        while len(self._waiting) <= self.ahead:
            chunk = list(itertools.islice(self._rows, CHUNK_ROWS))
            if not chunk:
                return
            self._waiting.append(self.workers.submit(chunk, self.opened.format))

    def _pass(self) -> Iterator[Row]:
        wanted = self.opened.source.num_samples
        return self.opened.read() if wanted is None else itertools.islice(self._again_and_again(), wanted)

    def _again_and_again(self) -> Iterator[Row]:
        rows = 0
        for row in self.opened.read():
            rows += 1
            yield row
        self._source_rows = rows
        while True:
            yield from self.opened.read()


def _by_row(samples: list[Rendered]) -> Iterator[list[Rendered]]:
    """Samples in the order of their rows, those of one row together."""
    numbers = itertools.accumulate(one.part == 0 for one in samples)
    for _, parts in itertools.groupby(zip(numbers, samples, strict=True), key=lambda pair: pair[0]):
        yield [one for _, one in parts]
