"""From what is learned of a text to the weight of each of its tokens.

A token is in the span that it begins in: one that stands partly in the prompt is not trained, and an end token that
takes the blanks behind it (as Phi's do) is. Within a turn that is learned in part, a token is learned when a character
of it is.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.data.loss import Learned

if TYPE_CHECKING:
    from tokenizers import Encoding


def place(spans: Sequence[tuple[int, int, float]], starts: np.ndarray) -> np.ndarray:
    """The weight of each token [T] from spans of characters and the character that each token begins at [T]."""
    weight = np.zeros(len(starts), np.float32)
    for start, end, value in spans:
        weight[(starts >= start) & (starts < end)] = value
    return weight


def weigh(learned: Learned, encoding: "Encoding") -> tuple[np.ndarray, int]:
    """The weight of each token [T] of a text, and the number of answers that begin within a token."""
    joined = sum(_begins_within(encoding, start, len(learned.text)) for _, start, _ in learned.answers)
    if learned.within is not None:
        return _partly(learned, encoding), joined
    weight = np.zeros(len(encoding), np.float32)
    for start, end, value in learned.spans:
        first = _token_at(encoding, start, len(learned.text))
        behind = _token_at(encoding, end, len(learned.text))
        if first is None or behind is None:
            return place(learned.spans, np.asarray(encoding.offsets).reshape(-1, 2)[:, 0]), joined
        weight[first:behind] = value
    return weight, joined


def classify(words: Sequence[tuple[int, int, int]], offsets: np.ndarray) -> np.ndarray:
    """The class of each token [T], -1 for none, from words and the characters of each token [T, 2]: (start, end).

    A word's class is that of the first token that has a character of it. One whose first token is an earlier word's
    too, or that has no token, has its class nowhere.
    """
    label = np.full(len(offsets), -1, np.int32)
    visible = np.flatnonzero(offsets[:, 1] > offsets[:, 0])  # not those that the tokenizer adds
    starts, ends = offsets[visible].T
    spans = np.asarray(words).reshape(-1, 3)
    for at, (_, end, number) in zip(np.searchsorted(ends, spans[:, 0], side="right"), spans, strict=True):
        if at < len(visible) and starts[at] < end and label[visible[at]] < 0:
            label[visible[at]] = number
    return label


def _partly(learned: Learned, encoding: "Encoding") -> np.ndarray:
    assert learned.within is not None
    starts, ends = np.asarray(encoding.offsets).reshape(-1, 2).T
    ends = np.maximum(ends, starts + 1)
    part = np.zeros(len(starts), np.float32)
    for start, end, value in learned.within:
        part[(starts < end) & (ends > start)] = value
    return np.where(place(learned.spans, starts) != 0, part, 0)


def _token_at(encoding: "Encoding", character: int, characters: int) -> int | None:
    """The first token that begins at a character or behind it; None where no token has the character.

    Asking for single tokens is several times as fast as a list of all offsets.
    """
    if character >= characters:
        return len(encoding)
    token = encoding.char_to_token(character)
    if token is None:
        return None
    if _start(encoding, token) < character:
        return token + 1
    while token and _start(encoding, token - 1) >= character:
        token -= 1
    return token


def _begins_within(encoding: "Encoding", character: int, characters: int) -> bool:
    """Whether a token has this character and the one before it."""
    token = encoding.char_to_token(character) if character < characters else None
    return token is not None and _start(encoding, token) < character


def _start(encoding: "Encoding", token: int) -> int:
    characters = encoding.token_to_chars(token)
    return -1 if characters is None else characters[0]
