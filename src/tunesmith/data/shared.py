"""What the sequences of a sample begin with in common stands in a row once.

A question with several answers, or a conversation that is trained turn by turn, repeats its beginning in each of
its sequences. Each says here how many of its first tokens stand in the sequence before it; a row then holds only what
is its own, and attention lets it see the rest (`types.Batch.prefix`).

The token before the first learned one is always a sequence's own: it is asked for that one, and the same token of
the sequence before for another.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.types import Tokens

if TYPE_CHECKING:
    from tunesmith.data.rendered import Rendered


def common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two sequences begin with in common."""
    shorter = min(len(one), len(other))
    differ = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(differ[0]) if len(differ) else shorter


def behind(before: Tokens, tokens: Tokens) -> Tokens:
    """The tokens with how many of them stand in the sequence before."""
    learned = np.flatnonzero(tokens.weight[1:])  # the first token is asked of nothing
    most = int(learned[0]) if len(learned) else len(tokens) - 1
    return replace(tokens, shared=min(common(before.ids, tokens.ids), most))


def branches(found: Sequence[Tokens]) -> tuple[Tokens, ...]:
    """The sequences of a sample, each but the first with what it shares with the one before."""
    return tuple(tokens if number == 0 else behind(found[number - 1], tokens) for number, tokens in enumerate(found))


def own_tokens(found: Sequence[Tokens]) -> int:
    """The tokens of a sample without what stands in it twice."""
    return sum(len(tokens) - tokens.shared for tokens in found)


def together(parts: "Sequence[Rendered]", limit: int) -> "list[Rendered]":
    """The conversations that a row was divided into, put together in samples of at most `limit` tokens.

    What they share with the one before in another sample is repeated, and counted as `repeated_tokens`.
    """
    found: list[Rendered] = []
    for part in parts:
        if part.branches and found and found[-1].branches:
            last = found[-1]
            tokens = behind(last.branches[-1], part.branches[0])
            if tokens.shared and own_tokens(last.branches) + len(tokens) - tokens.shared <= limit:
                found[-1] = replace(
                    last,
                    branches=(*last.branches, tokens),
                    truncated=last.truncated or part.truncated,
                    lost_tokens=last.lost_tokens + part.lost_tokens,
                    joined_answers=last.joined_answers + part.joined_answers,
                )
                continue
        found.append(part)
    return [replace(one, part=number) for number, one in enumerate(found)]
