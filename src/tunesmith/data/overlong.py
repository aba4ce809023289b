"""What to do with a conversation longer than the limit. An answer is never cut, and never loses its header or end."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tunesmith.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = tuple[Message, ...]
Count = Callable[[Turns], int]  # the tokens of a conversation, template included

TRIES = 8  # a shortened prompt can tokenise to a token or two more than reckoned


def truncate(turns: Turns, count: Count, limit: int, tokenizer: "PreTrainedTokenizerBase") -> Turns | None:
    """The conversation up to the last answer that fits; if none does, the first answer with its prompt shortened.

    None when even an empty prompt leaves no room for the answer.
    """
    ends = [index + 1 for index, turn in enumerate(turns) if turn.weight]
    for end in reversed(ends):
        if count(turns[:end]) <= limit:
            return turns[:end]
    shortened = turns[: ends[0]] if ends else turns
    for _ in range(TRIES):
        excess = count(shortened) - limit
        if excess <= 0:
            return shortened
        index = _longest_prompt(shortened)
        if index is None:
            return None
        turn = shortened[index]
        assert isinstance(turn.content, str)
        cut = replace(turn, content=_without_last_tokens(turn.content, excess, tokenizer))
        shortened = (*shortened[:index], cut, *shortened[index + 1 :])
    return None


def split(turns: Turns, count: Count, limit: int) -> list[Turns | None]:
    """The conversation as several that fit, divided before user turns, each with the system message; None where a
    single exchange is too long.
    """
    system = turns[:1] if turns and turns[0].role == "system" else ()
    parts: list[Turns | None] = []
    current: Turns = ()
    for exchange in _exchanges(turns[len(system) :]):
        if count(system + current + exchange) <= limit:
            current += exchange
            continue
        if current:
            parts.append(system + current)
        fits = count(system + exchange) <= limit
        current = exchange if fits else ()
        if not fits:
            parts.append(None)
    if current:
        parts.append(system + current)
    return parts


def _exchanges(turns: Turns) -> list[Turns]:
    """Each user turn with all that follows it up to the next one."""
    starts = [index for index, turn in enumerate(turns) if turn.role == "user" or index == 0]
    return [turns[first:last] for first, last in zip(starts, [*starts[1:], len(turns)], strict=True)]


def _longest_prompt(turns: Turns) -> int | None:
    """The untrained turn with the most text; a system message only when nothing else has any."""
    lengths = {
        index: len(turn.content) / (1_000 if turn.role == "system" else 1)
        for index, turn in enumerate(turns)
        if not turn.weight and isinstance(turn.content, str) and turn.content
    }
    return max(lengths, key=lengths.__getitem__) if lengths else None


def _without_last_tokens(text: str, number: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    kept = encoded["offset_mapping"][: max(0, len(encoded["input_ids"]) - number)]
    return text[: kept[-1][1]] if kept else ""
