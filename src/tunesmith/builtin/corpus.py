"""The text the built-in tiny model learns from: simple conversations in our own words, made from a seed.

`generate` gives conversations (`{"messages": [...]}`), no two the same; `generate_documents` gives plain
texts (`{"text": ...}`). `is_held_out` says which conversations are kept for evaluation: a fixed share, by
text alone, so that train and eval never share a row whatever the seed and the count are.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from tunesmith.builtin import corpus_about, corpus_numbers, corpus_stories, corpus_tables, corpus_words
from tunesmith.builtin.corpus_language import Turn, vary
from tunesmith.builtin.corpus_memory import recalled, remembered
from tunesmith.builtin.corpus_tables import Topic, material, table

Row = dict[str, list[dict[str, str]]]

EVAL_PER_THOUSAND = 20
SYSTEM_SHARE = 0.16
MAX_CHARACTERS = 3000
"""A conversation longer than this is cut after a full turn."""


@functools.cache
def _topics() -> tuple[list[Topic], list[float]]:
    weighted = corpus_tables.topics() + corpus_numbers.TOPICS + corpus_words.TOPICS + corpus_stories.TOPICS
    weighted += corpus_about.TOPICS
    weighted += [(6.0, lambda rng: remembered(rng, any_topic)), (1.2, lambda rng: recalled(rng, any_topic))]
    return [topic for _, topic in weighted], list(itertools.accumulate(weight for weight, _ in weighted))


def any_topic(rng: Random) -> list[Turn]:
    """Draw turns about one topic, chosen by weight."""
    topics, cumulative = _topics()
    return rng.choices(topics, cum_weights=cumulative)[0](rng)


def _conversation(rng: Random) -> list[Turn]:
    turns = [turn for _ in range(rng.choices((1, 2, 3, 4), (50, 25, 16, 9))[0]) for turn in any_topic(rng)]
    if rng.random() < 0.1:
        turns = table("chat", "greeting").turns(rng) + turns
    if rng.random() < 0.08:
        turns += table("chat", "closing_thanks").turns(rng)
    if rng.random() < 0.06:
        turns += table("chat", "closing_bye").turns(rng)
    return [replace(turn, ask=turn.ask if turn.exact else vary(rng, turn.ask, opening=True)) for turn in turns]


def _brief(turn: Turn) -> str | None:
    return turn.answer if turn.answer.count(". ") + turn.answer.count("! ") + turn.answer.count("\n") == 0 else None


_OBEY: dict[str, Callable[[Turn], str | None]] = {
    "plain": lambda turn: turn.answer,
    "brief": _brief,
    "bare": lambda turn: turn.short and turn.short[0].upper() + turn.short[1:],
    "upper": lambda turn: turn.answer.upper(),
    "lower": lambda turn: turn.answer.lower(),
    "sure": lambda turn: f"Sure! {turn.answer}",
    "friend": lambda turn: f"{turn.answer[:-1]}, my friend{turn.answer[-1]}" if turn.answer[-1] in ".!?" else None,
}
"""What each kind of system message makes of an answer; None when it cannot be obeyed."""


def _with_system(rng: Random, turns: list[Turn]) -> list[dict[str, str]]:
    kind = rng.choices(list(_OBEY), (40, 16, 20, 8, 4, 7, 5))[0]
    obeyed = [_OBEY[kind](turn) for turn in turns]
    answers = [answer for answer in obeyed if answer is not None]
    if len(answers) < len(turns):
        kind, answers = "plain", [turn.answer for turn in turns]
    system = rng.choice(material("memory")["systems"][kind])
    return [{"role": "system", "content": system}, *_messages([turn.ask for turn in turns], answers)]


def _messages(asks: list[str], answers: list[str]) -> list[dict[str, str]]:
    pairs = zip(asks, answers, strict=True)
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _shortened(turns: list[Turn]) -> list[Turn]:
    sizes = itertools.accumulate(len(turn.ask) + len(turn.answer) for turn in turns)
    return [turn for turn, size in zip(turns, sizes, strict=True) if size <= MAX_CHARACTERS]


def attempts(seed: int) -> Iterator[Row]:
    """Make conversations without end, with the repeats that chance makes."""
    rng = Random(seed)
    while True:
        turns = _shortened(_conversation(rng))
        if rng.random() < SYSTEM_SHARE:
            yield {"messages": _with_system(rng, turns)}
        else:
            yield {"messages": _messages([turn.ask for turn in turns], [turn.answer for turn in turns])}


def generate(seed: int, documents: int) -> Iterator[Row]:
    """Make so many different conversations, the same ones for the same seed."""
    seen: set[bytes] = set()
    for row in attempts(seed):
        if len(seen) == documents:
            return
        if (key := fingerprint(row)) not in seen:
            seen.add(key)
            yield row


def generate_documents(seed: int, documents: int) -> Iterator[dict[str, str]]:
    """Make so many different plain texts."""
    rng = Random(seed + 1)
    seen: set[str] = set()
    while len(seen) < documents:
        text = corpus_stories.document(rng)
        if text not in seen:
            seen.add(text)
            yield {"text": text}


def fingerprint(row: Row) -> bytes:
    """Digest the exact text of a conversation."""
    return hashlib.sha256(json.dumps(row, ensure_ascii=False).encode()).digest()


def is_held_out(row: Row) -> bool:
    """Tell whether a conversation belongs to the evaluation file."""
    return int.from_bytes(fingerprint(row)[:8], "big") % 1000 < EVAL_PER_THOUSAND
