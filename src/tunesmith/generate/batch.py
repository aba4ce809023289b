"""Answers in the making: who waits, who is being answered, and what each step adds to every one of them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.generate.decoder import Decoder
from tunesmith.generate.sampling import Constraint, Drawing, Sampling, Token, draw
from tunesmith.generate.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Finish = Literal["stop", "length", "closed"]  # the model or a stop text ended it, no room, or nobody reads it


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to an answer. The text lags behind the tokens where they are no whole character yet."""

    text: str
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None  # of the last piece


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be answered: a prompt of ids, and how."""

    prompt: tuple[int, ...]
    sampling: Sampling = Sampling()
    adapter: str | None = None  # one of `Decoder.adapters`; None: the model as it is
    special: bool = False  # whether special tokens are text too
    constraint: Constraint | None = None


class Stream(Iterator[Piece]):
    """One answer: iterating gives its pieces as they are made, and lets them be made where nobody else does."""

    def __init__(self, request: Request, text: Text, drive: Callable[[], None]) -> None:
        self.request = request
        self.finish: Finish | None = None
        self.num_tokens = 0
        self._text, self._drive = text, drive
        self._drawing = Drawing(request.sampling, request.prompt, request.constraint)
        self._pieces: deque[Piece] = deque()

    def __next__(self) -> Piece:
        while not self._pieces and self.finish is None:
            self._drive()
        if not self._pieces:
            raise StopIteration
        return self._pieces.popleft()

    @property
    def drawing(self) -> Drawing:
        """What decides its next token."""
        return self._drawing

    def ready(self) -> list[Piece]:
        """The pieces that are made and not read."""
        found = list(self._pieces)
        self._pieces.clear()
        return found

    def close(self) -> None:
        """Make no more of it."""
        if self.finish is None:
            self.finish = "closed"
            self._pieces.clear()

    def take(self, token: Token, stops: frozenset[int]) -> None:
        """Go on with a token that was drawn."""
        if token.id in stops:
            self.end("stop")
            return
        self.num_tokens += 1
        text = self._text.add(token.id)
        if self._text.stopped:
            self.end("stop", text, (token,))
        elif self.num_tokens == self.request.sampling.max_new_tokens:
            self.end("length", text, (token,))
        else:
            self._pieces.append(Piece(text, (token,)))

    def end(self, finish: Finish, text: str = "", tokens: tuple[Token, ...] = ()) -> None:
        """End it with what is left of its text."""
        rest = text + self._text.end()
        self.finish = "stop" if self._text.stopped else finish
        self._pieces.append(Piece(rest, tokens, self.finish))


class Batch:
    """The answers of one decoder. A step goes on with each by a token; answers join and leave between steps.

    It belongs to one thread.
    """

    def __init__(self, decoder: Decoder, tokenizer: "PreTrainedTokenizerBase", stops: frozenset[int]) -> None:
        self.decoder, self.tokenizer, self.stops = decoder, tokenizer, stops
        self.waiting: deque[Stream] = deque()
        self.running: dict[Stream, Any] = {}  # with their places in the decoder
        self._last: dict[Stream, int] = {}

    def add(self, request: Request, drive: Callable[[], None] | None = None) -> Stream:
        """An answer to wait for. `drive` is what its reader does while it has no piece; None: a step of this batch."""
        text = Text(self.tokenizer, request.sampling.stop, request.special)
        stream = Stream(request, text, drive or self.step)
        self.waiting.append(stream)
        return stream

    def step(self) -> None:
        """Begin the answers that there is room for, or go on with those that have begun."""
        self._leave()
        while self.waiting and len(self.running) < self.decoder.most:
            stream = self.waiting.popleft()
            if stream.finish is None:
                place, logits = self.decoder.begin(stream.request.prompt, stream.request.adapter)
                self.running[stream] = place
                self._draw([stream], logits[None])
        self._leave()
        if self.running:
            streams = list(self.running)
            logits = self.decoder.step(list(self.running.values()), [self._last[stream] for stream in streams])
            self._draw(streams, logits)
            self._leave()

    def _draw(self, streams: Sequence[Stream], logits: Any) -> None:
        for stream, token in zip(streams, draw(logits, [stream.drawing for stream in streams]), strict=True):
            self._last[stream] = token.id
            stream.take(token, self.stops)

    def _leave(self) -> None:
        """Give up the places of the answers that have ended."""
        for stream in [stream for stream in self.running if stream.finish is not None]:
            self.decoder.free(self.running.pop(stream))
            self._last.pop(stream)
