"""A sample as tokens, or the reason why there is none."""

from dataclasses import dataclass, replace

from tunesmith.errors import DataError, TemplateError
from tunesmith.types import Label, Tokens


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sample as tokens, or why there is none. A split row gives several, its parts numbered from 0."""

    where: str
    branches: tuple[Tokens, ...]  # empty when dropped
    label: Label | None = None
    dropped: str | None = None  # the reason
    part: int = 0
    truncated: bool = False
    lost_tokens: int = 0  # of the row, in none of its samples; 0 where the row was never written as tokens
    refused: str | None = None  # the whole message, when the row could not be read or written
    divided: bool = False  # whether the template makes several conversations of the row
    repeated_tokens: int = 0  # at its beginning, that the row's part before begins with too
    joined_answers: int = 0  # whose first characters are part of their header's last token, which is not learned
    special_said: bool = False  # whether the row's own text has a special token, which is read as one
    tied_answers: int = 0  # of the row, that are left out, since another one is as good
    earlier_read: bool = False  # whether it has earlier answers, which are read and not learned


def refused(where: str, error: DataError | TemplateError) -> Rendered:
    """A row that could not be read or written, with the whole message."""
    kind = "unreadable" if isinstance(error, DataError) else "the template refuses it"
    return Rendered(where, (), dropped=f"{kind}: {error.reason}", refused=str(error))


def losing(found: list[Rendered], tokens: int) -> list[Rendered]:
    """The samples of a shortened row of so many tokens; what none has is lost with the first cut or left out."""
    lost = max(0, tokens - sum(len(branch) for one in found for branch in one.branches))
    at = next((index for index, one in enumerate(found) if one.truncated or one.dropped), None)
    return found if at is None else [*found[:at], replace(found[at], lost_tokens=lost), *found[at + 1 :]]
