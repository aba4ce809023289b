"""A model under examination whose answers are written down as they are made, so that a killed evaluation goes on.

What is known again is the question itself, as tokens: it does not matter which task asks it, or in which order.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.generate.engine import Reply
from tunesmith.generate.subject import Sequence_, Subject
from tunesmith.journal import Journal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAID_EVERY = 20.0  # seconds
KEY = "asked"


@dataclass(frozen=True)
class Remembered(Subject):
    """A subject that knows what it was asked before."""

    subject: Subject
    tokenizer: "PreTrainedTokenizerBase"
    journal: Journal | None = None  # None: nothing is written down
    say: Callable[[str], None] = print
    name: str = ""
    known: dict[str, Any] = field(default_factory=dict)
    said: list[float] = field(default_factory=list)  # when it was last told how far it is

    @property
    def context_tokens(self) -> int | None:
        """As `Subject` says it."""
        return self.subject.context_tokens

    @property
    def most_tokens(self) -> int | None:
        """As `Subject` says it."""
        return self.subject.most_tokens

    def likeliest(self, tokens: Sequence[int], number: int) -> list[bool]:
        """As the subject's: it is not remembered."""
        return self.subject.likeliest(tokens, number)

    def logps_by_row(self, sequences: Sequence[Sequence_]) -> Iterator[list[torch.Tensor]]:
        """As the subject's."""
        return self.subject.logps_by_row(sequences)

    def logps(self, sequences: Sequence[Sequence_]) -> list[torch.Tensor]:
        """As `Subject.logps`; what is known already is not computed again."""
        keys = [_key("logps", list(tokens), asked) for tokens, asked in sequences]
        new = {key: one for key, one in zip(keys, sequences, strict=True) if key not in self.known}
        left = iter(new)
        for row in self.logps_by_row(list(new.values())):
            self._keep([(next(left), found.tolist()) for found in row])
        return [torch.tensor(self.known[key], dtype=torch.float32) for key in keys]

    def replies(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[str] = ()
    ) -> Iterator[Reply]:
        """As `Subject.replies`; what is known already is not made again."""
        keys = [_key("reply", list(prompt), max_new_tokens, list(stop)) for prompt in prompts]
        new = {key: one for key, one in zip(keys, prompts, strict=True) if key not in self.known}
        made = zip(new, self.subject.replies(list(new.values()), max_new_tokens, stop), strict=True)
        for key in keys:
            while key not in self.known:
                found, reply = next(made)
                self._keep([(found, [reply.text, reply.finish])])
            yield Reply(*self.known[key])

    def _keep(self, pairs: Sequence[tuple[str, Any]]) -> None:
        self.known.update(pairs)
        if self.journal is not None:
            self.journal.append({KEY: [key for key, _ in pairs], "found": [found for _, found in pairs]})
        if time.monotonic() - self.said[-1] > SAID_EVERY:
            self.said.append(time.monotonic())
            self.say(f"{self.name}: {len(self.known):,} asked")


@contextmanager
def remembered(subject: Subject, place: Path | None, name: str, say: Callable[[str], None]) -> Iterator[Remembered]:
    """A subject that goes on from a file, and writes into it; the file is gone when the block ends well."""
    journal = None
    known: dict[str, Any] = {}
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        journal = Journal(place, KEY)
        for entry in journal.entries:
            known.update(zip(entry[KEY], entry["found"], strict=True))
        if known:
            say(f"{name}: goes on, {len(known):,} were asked before it was stopped")
    yield Remembered(subject, subject.tokenizer, journal, say, name, known, [time.monotonic()])
    if place is not None:
        place.unlink()


def _key(*asked: Any) -> str:
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=12).hexdigest()
