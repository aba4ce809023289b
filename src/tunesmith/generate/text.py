"""The text of an answer while its tokens come: whole characters, and nothing of a text that ends it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DECODED = 16  # tokens that are decoded for the next one, about: fewer cost a second call more often
HALF_CHARACTER = "\ufffd"  # what a decoder writes for bytes that are no whole character


class Text:
    """Takes tokens and gives the text that they certainly add.

    Held back are bytes of an unfinished character, and what may be the beginning of a `stop` text. Where one is
    found, `stopped` is True and nothing of it is given.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str] = (), special: bool = False) -> None:
        self.stopped = False
        self._decode = _decoder(tokenizer)
        self._stop = tuple(stop)
        self._skips = not special  # special tokens are no text
        self._ids: list[int] = []
        self._said = self._start = self._end = 0
        self._held = ""

    def add(self, token: int) -> str:
        """The text that is certain with one more token."""
        self._ids.append(token)
        # Decoded from `start`, not from `end` (where the unsaid begins): some tokenizers write the first token of
        # a text in another way.
        text = self._decoded()
        if len(text) <= self._said or text.endswith(HALF_CHARACTER):
            return ""
        new = text[self._said :]
        if len(self._ids) - self._start < DECODED:
            self._said = len(text)
        else:
            self._start = self._end
            self._said = len(self._decoded())
        self._end = len(self._ids)
        return self._released(new)

    def end(self) -> str:
        """What is left when no more tokens come."""
        rest = "" if self.stopped else self._released(self._decoded()[self._said :])
        held, self._held = self._held, ""
        return rest + ("" if self.stopped else held)

    def _decoded(self) -> str:
        return self._decode(self._ids[self._start :], skip_special_tokens=self._skips)

    def _released(self, new: str) -> str:
        """What of the held and the new text cannot belong to a stop text."""
        if not self._stop:
            return new
        text = self._held + new
        found = [place for one in self._stop if (place := text.find(one)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        longest = max(len(one) for one in self._stop) - 1
        tails = (text[-many:] for many in range(min(longest, len(text)), 0, -1))
        self._held = next((tail for tail in tails if any(one.startswith(tail) for one in self._stop)), "")
        return text[: len(text) - len(self._held)]


def _decoder(tokenizer: Any) -> Callable[..., str]:
    """What makes text of tokens: the tokenizer's inner part, several times as fast, where all it does is in that."""
    from transformers import PreTrainedTokenizerBase

    plain = type(tokenizer).decode is PreTrainedTokenizerBase.decode and not tokenizer.clean_up_tokenization_spaces
    return tokenizer.backend_tokenizer.decode if plain and tokenizer.is_fast else tokenizer.decode
