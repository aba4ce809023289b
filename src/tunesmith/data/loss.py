"""What of a conversation is learned: data.loss, and what the row says of its turns, as characters of the text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from tunesmith.errors import TemplateError
from tunesmith.recipe_data import Loss
from tunesmith.seams import Template
from tunesmith.templates._apply import Tools, last_token
from tunesmith.templates._parts import Conversation, Found, Place, without_reasoning
from tunesmith.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = tuple[Message, ...]
Span = tuple[int, int, float]  # characters from the first to behind the last, and their weight

NO_TURN = "no trained turn"
NO_MATCH = "nothing matches data.loss.pattern"
ONLY_CALLS = "only tool calls, which data.loss.tool_calls=false does not learn"
ONLY_REASONING = "only reasoning, which data.loss.reasoning=keep does not learn"
ONLY_BLANKS = "the row's spans hold blanks alone"


@dataclass(frozen=True, slots=True)
class Learned:
    """A conversation as text, and what of it is learned.

    A token is learned when it begins in one of `spans`, of which a later one outweighs an earlier; and, where `within`
    is given, when a character of it is in one of those, whose weight it has. `answers` are where the trained turns of
    the assistant stand: (turn, first character, behind the last).
    """

    text: str
    spans: tuple[Span, ...]
    within: tuple[Span, ...] | None
    answers: tuple[tuple[int, int, int], ...]


def resolve(loss: Loss, turns: Turns) -> Turns:
    """The turns with `train` said of each, and without their reasoning where that is dropped."""
    if loss.reasoning == "drop":
        turns = tuple(_without_reasoning(turn) if turn.role == "assistant" else turn for turn in turns)
    if loss.train_on_prompt:
        return turns
    last = max((index for index, turn in enumerate(turns) if turn.role in loss.roles), default=None)
    return tuple(
        turn
        if turn.train is not None
        else replace(
            turn, train=bool(turn.spans) or (turn.role in loss.roles and (loss.turns == "all" or index == last))
        )
        for index, turn in enumerate(turns)
    )


def write(loss: Loss, template: Template, turns: Turns, tools: Tools, tokenizer: "PreTrainedTokenizerBase") -> Learned:
    """A conversation, its turns resolved, as text with what of it is learned.

    Of a turn of which a part is learned, the end is learned too; of one in which nothing is left, nothing is.

    Raises:
        TemplateError: as `Template.write`, or the parts of a turn cannot be told apart in the text.
    """
    if loss.train_on_prompt:
        return _everything(template, turns, tools, tokenizer)
    written = template.write(turns, tools, tokenizer)
    trained = [index for index, turn in enumerate(turns) if turn.weight]
    answers = tuple(
        (index, start, end)
        for index, (start, end, _) in zip(trained, written.spans, strict=True)
        if turns[index].role == "assistant"
    )
    if not any(_is_partly_learned(loss, turns[index]) for index in trained):
        return Learned(written.text, written.spans, None, answers)
    conversation = Conversation(tokenizer, [turn.spoken() for turn in turns], tools, written.text)
    within: list[Span] = []
    for index, span in zip(trained, written.spans, strict=True):
        partly = _is_partly_learned(loss, turns[index])
        within += _parts(loss, turns[index], index, span, conversation) if partly else (span,)
    return Learned(written.text, written.spans, tuple(within), answers)


def reason(loss: Loss, turns: Turns) -> str:
    """Why nothing of a conversation, its turns resolved, is learned."""
    trained = [turn for turn in turns if turn.weight]
    if not trained:
        return NO_TURN if loss.roles == Loss().roles else f"no turn of data.loss.roles ({', '.join(loss.roles)})"
    if any(turn.spans for turn in trained):
        return ONLY_BLANKS
    if loss.pattern is not None:
        return NO_MATCH
    if not loss.tool_calls and any(turn.tool_calls for turn in trained):
        return ONLY_CALLS
    return ONLY_REASONING if loss.reasoning == "keep" else NO_TURN


def _without_reasoning(turn: Message) -> Message:
    assert isinstance(turn.content, str), "conversations of other parts are not rendered"
    cut = without_reasoning(turn.content)
    spans = turn.spans
    if spans is not None and cut:
        moved = ((max(0, start - cut), end - cut, weight) for start, end, weight in spans)
        spans = tuple((start, end, weight) for start, end, weight in moved if start < end)
    return replace(turn, content=turn.content[cut:], reasoning=None, spans=spans)


def _reasons(turn: Message) -> bool:
    """Whether an answer has reasoning, of its own or at the beginning of its content."""
    assert isinstance(turn.content, str), "conversations of other parts are not rendered"
    return turn.role == "assistant" and bool(turn.reasoning or without_reasoning(turn.content))


def _is_partly_learned(loss: Loss, turn: Message) -> bool:
    if turn.spans is not None or loss.pattern is not None:
        return True
    return (bool(turn.tool_calls) and not loss.tool_calls) or (loss.reasoning == "keep" and _reasons(turn))


def _everything(template: Template, turns: Turns, tools: Tools, tokenizer: "PreTrainedTokenizerBase") -> Learned:
    """Every token, but the blanks behind the last turn; turns of which the row says so have their own weight."""
    asked = tuple(turn if turn.train is None else replace(turn, train=True) for turn in turns)
    written = template.write(asked, tools, tokenizer)
    trained = [index for index, turn in enumerate(asked) if turn.weight]
    spans: list[Span] = [(0, len(written.text.rstrip()), 1.0)]
    answers = []
    for index, (start, end, _) in zip(trained, written.spans, strict=True):
        if turns[index].train is not None:
            spans.append((start, end, turns[index].weight))
        if turns[index].role == "assistant" and turns[index].weight:
            answers.append((index, start, end))
    return Learned(written.text, tuple(spans), None, tuple(answers))


def _parts(loss: Loss, turn: Message, index: int, span: Span, conversation: Conversation) -> Iterator[Span]:
    """The learned characters of a turn that is not learned as a whole, and its end where there are any."""
    start, end, weight = span
    marked = turn.spans or ()
    found = conversation.find(index, [(first, last) for first, last, _ in marked])
    stop = end - len(last_token(conversation.text[start:end], conversation.tokenizer))
    if turn.spans is not None:
        learned = [(*place, weight * marked[number][2]) for number, place in found.spans]
    else:
        places = _kept(loss, turn, index, (start, stop), found, conversation)
        learned = [(*place, weight) for place in _matching(loss.pattern, conversation.text, places)]
    if learned:
        yield from learned
        yield stop, end, weight


def _kept(
    loss: Loss, turn: Message, index: int, region: tuple[int, int], found: Found, conversation: Conversation
) -> list[Place]:
    """The pieces of a turn's region that hold the kinds of text that are learned.

    What a template writes between reasoning and what follows it belongs to the reasoning, and what it writes behind
    the content to the calls. A pattern is looked for in what the turn says, and in calls as the template writes them.
    """
    (start, stop), content, reasons = region, found.content, _reasons(turn)
    if content is None and reasons and turn.tool_calls:
        point = conversation.point(index)
        content = None if point is None else (point, point)
    in_order = [place for place in (found.reasoning, content, *found.calls) if place is not None]
    unclear = content is None and reasons and bool(turn.tool_calls)
    if unclear or any(one[1] > other[0] for one, other in pairwise(in_order)):
        raise TemplateError(
            f"turn {index + 1} of {len(conversation.turns)}: the chat template does not write reasoning, text and tool "
            "calls one after the other, so data.loss cannot choose among them: learn the turn as a whole",
            "reasoning, text and tool calls of a turn do not stand one after the other",
        )
    first, behind = content or ((start, start) if turn.tool_calls else (stop, stop))
    kinds = (
        (reasons and loss.reasoning == "train", (start, first), found.reasoning),
        (True, (first if reasons else start, behind if turn.tool_calls else stop), found.content),
        (bool(turn.tool_calls) and loss.tool_calls, (behind, stop), (behind, stop)),
    )
    return [whole if loss.pattern is None else said for kept, whole, said in kinds if kept and said is not None]


def _matching(pattern: str | None, text: str, places: Sequence[Place]) -> Iterator[Place]:
    """What a pattern matches in some places of a text: its groups, where it has some. All of them without one."""
    for start, end in places:
        for match in re.finditer(pattern, text[start:end]) if pattern is not None else ():
            for group in range(1, match.re.groups + 1) if match.re.groups else (0,):
                if match.end(group) > match.start(group):
                    yield start + match.start(group), start + match.end(group)
        if pattern is None:
            yield start, end
