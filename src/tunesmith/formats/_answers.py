"""A prompt and its answer, each a text, a message or several."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tunesmith.errors import DataError
from tunesmith.formats import _turns
from tunesmith.formats._fields import Fields, described, from_json
from tunesmith.formats._media import with_media
from tunesmith.formats._tags import USUAL_KEYS, Tags
from tunesmith.types import Message

CONVERSATIONS = ("conversations", "messages")  # columns of turns, in the order that they are looked for
QUESTIONS = ("prompt", "question")  # columns of a prompt


def said(row: Fields, key: str, tags: Tags, role: str) -> tuple[Message, ...]:
    """What a column says: a text is a turn of `role`, a message is itself, a list (or its JSON text) is its turns.

    Raises:
        DataError: it is none of these.
    """
    value = row.values.get(key)
    if isinstance(value, Mapping) and value.keys() & {tags.role_tag, *(who for who, _ in USUAL_KEYS)}:
        place = f"{row.place}.{key}" if row.place else key
        return (_turns.message(Fields(value, place), tags),)
    if isinstance(value, list | tuple) or (isinstance(value, str) and _holds_turns(value, tags)):
        return _turns.turns(row, key, tags)
    if key in row.values and not isinstance(value, str):
        raise row.wrong(key, f"must be text, a message or a list of messages and is {described(value)}")
    return (Message(role, row.text(key)),)


def _holds_turns(value: str, tags: Tags) -> bool:
    """Whether a text is the JSON of turns, as a table has them in a cell, and not an answer that is JSON."""
    if not value.lstrip().startswith("["):
        return False
    keys = ((tags.role_tag, tags.content_tag), *USUAL_KEYS)
    turns = from_json(value)
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(isinstance(turn, dict) and any(turn.keys() >= set(pair) for pair in keys) for turn in turns)
    )


def answer(row: Fields, key: str, tags: Tags) -> tuple[Message, ...]:
    """The turns of an answer, of which the first is the assistant's. Raises DataError."""
    turns = said(row, key, tags, "assistant")
    if turns[0].role != "assistant":
        raise row.wrong(key, f"begins with the role {turns[0].role}, and an answer is the assistant's")
    return turns


def prompt(row: Fields, tags: Tags) -> tuple[Message, ...] | None:
    """The turns that a row has before its answer, in whichever column it has them; None when it has none.

    Raises:
        DataError: they cannot be read, or end with an answer.
    """
    key = next((key for key in (*CONVERSATIONS, *QUESTIONS) if row.values.get(key) not in (None, "")), None)
    if key is not None:
        turns = said(row, key, tags, "user")
    elif "instruction" in row.values:
        turns, key = instruction(row), "instruction"
    else:
        return None
    if turns[-1].role == "assistant":
        raise row.wrong(key, "ends with an answer, and the answer has a column of its own")
    return turns


def instruction(row: Fields) -> tuple[Message, ...]:
    """The turns of `history`, and `instruction` and `input` joined by a line end. Raises DataError."""
    parts = (row.text("instruction"), row.optional_text("input"))
    turns = []
    for asked, answered in _pairs(row):
        turns += [Message("user", asked), Message("assistant", answered)]
    return (*turns, Message("user", "\n".join(part for part in parts if part)))


def _pairs(row: Fields) -> list[tuple[str, str]]:
    pairs = []
    for number, pair in enumerate(row.optional_items("history")):
        if not isinstance(pair, list | tuple) or [type(part) for part in pair] != [str, str]:
            raise DataError(f"history[{number}] must be a pair of texts, question and answer, and is {described(pair)}")
        texts = Fields({"0": pair[0], "1": pair[1]}, f"history[{number}]")
        pairs.append((texts.text("0"), texts.text("1")))
    return pairs


def whole(row: Fields, turns: tuple[Message, ...], system: str | None = None) -> tuple[Message, ...]:
    """A conversation with what stands beside it in its row: the system message and media.

    `system` is the message of rows that have none of their own. Raises DataError.
    """
    own = row.optional_text("system")
    turns = _turns.with_system(turns, own)
    if system and not own and turns[0].role != "system":
        turns = (Message("system", system), *turns)
    return with_media(row, turns)


def unlearned(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns as context: none is learned."""
    return tuple(replace(turn, train=False, spans=None) if turn.weight or turn.spans else turn for turn in turns)
