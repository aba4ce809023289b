"""Answers in the making: who waits, who is being answered, and what each step adds to every one of them."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.errors import ModelError, RunError, near
from tunesmith.generate.asked import Sampling
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.ends import Written
from tunesmith.generate.sampling import Drawing, Grammar, Token, Unheld, draw
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
    grammar: Grammar | None = None  # what the answer must be


class Stream(Iterator[Piece]):
    """One answer: iterating gives its pieces as they are made, and lets them be made where nobody else does."""

    def __init__(self, request: Request, text: Text, stops: frozenset[int], drive: Callable[[], None]) -> None:
        self.request = request
        self.finish: Finish | None = None
        self.error: RunError | None = None  # why it has no end
        self.ids: list[int] = []  # without the token that ended it
        self._text, self._stops, self._drive = text, stops, drive
        self._drawing = Drawing(request.sampling, request.prompt, request.grammar)
        self._pieces: deque[Piece] = deque()

    def __next__(self) -> Piece:
        while not self._pieces and self.finish is None:
            self._drive()
        if self._pieces:
            return self._pieces.popleft()
        if self.error is not None:
            raise self.error
        raise StopIteration

    @property
    def num_tokens(self) -> int:
        """How many tokens it has so far."""
        return len(self.ids)

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

    def take(self, token: Token) -> None:
        """Go on with a token that was drawn."""
        if token.id in self._stops:
            self.end("stop")
            return
        self.ids.append(token.id)
        text, form = self._text.add(token.id), self._drawing.constraint
        if form is not None and form.problem is not None:
            found = f"the answer cannot be held to its form behind {self.num_tokens} tokens: {form.problem}"
            self.error, self.finish = Unheld(found), "closed"
            self._pieces.append(Piece(text, (token,)))
        elif self._text.stopped or (form is not None and form.is_whole):
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

    It belongs to one thread. The model answers with `tokenizer` up to a token of `stops`, and each adapter as
    `adapters` says by its name.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: "PreTrainedTokenizerBase",
        stops: frozenset[int],
        adapters: Mapping[str, Written] = {},
    ) -> None:
        self.decoder, self._own, self._adapters = decoder, Written(tokenizer, stops), adapters
        self.waiting: deque[Stream] = deque()
        self.running: dict[Stream, Any] = {}  # with their places in the decoder, the oldest first
        self._last: dict[Stream, int] = {}  # the newest token of those whose prompts are read

    def add(self, request: Request, drive: Callable[[], None] | None = None) -> Stream:
        """An answer to wait for. `drive` is what its reader does while it has no piece; None: a step of this batch.

        Raises:
            ModelError: there is no such adapter, or never room for the prompt.
            RunError: the answer cannot be held to its form.
        """
        if request.adapter is not None and request.adapter not in self.decoder.adapters:
            raise ModelError(
                f"there is no adapter {request.adapter!r} on the model. {near(request.adapter, self.decoder.adapters)}"
            )
        room = self.decoder.most_tokens
        if room is not None and len(request.prompt) > room:
            raise ModelError(f"a prompt of {len(request.prompt)} tokens has no room in a cache of {room}: shorten it")
        written = self._own if request.adapter is None else self._adapters[request.adapter]
        text = Text(written.tokenizer, request.sampling.stop, request.special)
        stream = Stream(request, text, written.stops, drive or self.step)
        self.waiting.append(stream)
        return stream

    def step(self) -> None:
        """Read a part of the prompts that wait, as there is room, and go on with the answers that have begun."""
        self._leave()
        self._join()
        unread = [stream for stream in self.running if stream not in self._last]
        if unread:
            self._read(unread)
            self._leave()
        self._make_room()
        streams = list(self._last)
        if streams:
            places = [self.running[stream] for stream in streams]
            self._draw(streams, self.decoder.step(places, list(self._last.values())))
            self._leave()

    def _join(self) -> None:
        """Give places to those that wait, in their order, while there is room."""
        while self.waiting and len(self.running) < self.decoder.most:
            stream = self.waiting[0]
            if stream.finish is None:
                place = self.decoder.begin((*stream.request.prompt, *stream.ids), stream.request.adapter)
                if place is None:
                    return
                self.running[stream] = place
            self.waiting.popleft()

    def _read(self, unread: Sequence[Stream]) -> None:
        of_place = {id(self.running[stream]): stream for stream in unread}
        places, logits = self.decoder.read([self.running[stream] for stream in unread])
        if places:
            self._draw([of_place[id(place)] for place in places], logits)

    def _make_room(self) -> None:
        """Let the answers that began last wait again, until there is room for another token of each.

        What they have said they read again later. One that has all the room for itself has come to its end.
        """
        while not self.decoder.has_room([self.running[stream] for stream in self._last]):
            *others, youngest = self.running
            if others:
                self._give_up(youngest)
                self.waiting.appendleft(youngest)
            else:
                youngest.end("length")
                self._leave()

    def _draw(self, streams: Sequence[Stream], logits: Any) -> None:
        for stream, token in zip(streams, draw(logits, [stream.drawing for stream in streams]), strict=True):
            self._last[stream] = token.id
            stream.take(token)

    def _leave(self) -> None:
        """Give up the places of the answers that have ended."""
        for stream in [stream for stream in self.running if stream.finish is not None]:
            self._give_up(stream)

    def _give_up(self, stream: Stream) -> None:
        self.decoder.free(self.running.pop(stream))
        self._last.pop(stream, None)
