"""What to do with a sample longer than the limit. An answer is never cut, and keeps header and end."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tunesmith.types import Message, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = tuple[Message, ...]
Count = Callable[[Turns], int]  # the tokens of a conversation, template included

TRIES = 8  # a shortened prompt can tokenise to a token or two more than reckoned


def truncate(turns: Turns, count: Count, limit: int, tokenizer: "PreTrainedTokenizerBase") -> Turns | None:
    """The conversation up to the last answer that fits; if none does, the first with its prompt shortened.

    One without an answer (as a text whose class is learned) is shortened as a whole. None when even an empty prompt
    leaves no room for the answer.
    """
    ends = [index + 1 for index, turn in enumerate(turns) if turn.weight] or [len(turns)]
    fitting = bisect_right(ends, limit, key=lambda end: count(turns[:end]))
    if fitting:
        return turns[: ends[fitting - 1]]
    shortened = turns[: ends[0]]
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
    """The conversation as several that fit, divided before user turns, each with the system message.

    None stands where a single exchange is too long.
    """
    system = turns[:1] if turns[0].role == "system" else ()
    parts: list[Turns | None] = []
    current: Turns = ()
    for exchange in _exchanges(turns[len(system) :]):
        if current and count(system + current + exchange) <= limit:
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


def cut(tokens: Tokens, limit: int) -> list[Tokens]:
    """A document as pieces of at most `limit` tokens, none without something to learn.

    Each piece starts with the last token of the one before, which is given and not learned there, so that
    every token but the document's first is learned once.
    """
    starts = range(0, max(1, len(tokens) - 1), limit - 1)
    if tokens.label is None:
        return [Tokens(tokens.ids[at : at + limit], tokens.weight[at : at + limit]) for at in starts]
    pieces = []
    for at in starts:
        part = slice(at, at + limit)
        label = tokens.label[part].copy()
        label[:1] = label[:1] if at == 0 else -1
        pieces.append(Tokens(tokens.ids[part], tokens.weight[part], label=label))
    return [piece for piece in pieces if piece.trained]


def _exchanges(turns: Turns) -> list[Turns]:
    """Each question, of one user turn or several, with all that follows it up to the next question."""
    roles = [turn.role for turn in turns]
    starts = [i for i, role in enumerate(roles) if i == 0 or (role == "user" and roles[i - 1] != "user")]
    return [turns[first:last] for first, last in zip(starts, [*starts[1:], len(turns)], strict=True)]


def _longest_prompt(turns: Turns) -> int | None:
    """The turn with the most text that is not learned; a system message only when nothing else has any."""
    lengths = {
        index: (turn.role != "system", len(turn.content))
        for index, turn in enumerate(turns)
        if turn.role != "assistant" and not turn.weight and isinstance(turn.content, str) and turn.content
    }
    return max(lengths, key=lengths.__getitem__) if lengths else None


def _without_last_tokens(text: str, number: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text up to the first of its last tokens; a character spread over several tokens goes as a whole."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = [start for start, _ in encoded["offset_mapping"]]
    return text[: starts[-number]] if number < len(starts) else ""
