"""The template that the tokenizer ships with; what is trained is found by writing prefixes."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TemplateError
from tunesmith.seams import Template, Written
from tunesmith.templates._apply import Tools, Turns, apply, last_token
from tunesmith.templates._parts import Conversation
from tunesmith.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Jinja(Template):
    """A chat template in jinja: the tokenizer's own, or a file's."""

    file: str | None = None
    """Jinja file to use in place of the tokenizer's own template; it is saved with the tuned model."""

    def prepare(self, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
        """The tokenizer with this template. Raises TemplateError when neither it nor the recipe has one."""
        text = self.text()
        if text is not None:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.chat_template = text
        if tokenizer.chat_template is None:
            raise TemplateError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template (a base model?): "
                "say data.template=plain, the name of a format such as chatml, or data.template.file=FILE"
            )
        return tokenizer

    def text(self) -> str | None:
        """The jinja text that replaces the tokenizer's, if any."""
        if self.file is None:
            return None
        try:
            return Path(self.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise TemplateError(f"data.template.file: {self.file} cannot be read: {reason}") from error

    def write(self, messages: tuple[Message, ...], tools: Tools, tokenizer: "PreTrainedTokenizerBase") -> Written:
        """The conversation's text; a trained answer spans from the generation prompt's end to its end token.

        A trained turn of another role spans from its content, and the blank that the template writes before it, to the
        token that ends it, if one does.

        Raises:
            TemplateError: the template refuses the conversation or leaves out a part of it, writes a trained
                turn differently once later turns follow, or ends an answer with no token to stop at.
        """
        turns = [message.spoken() for message in messages]
        text = apply(tokenizer, turns, tools)
        _refuse_loss(tokenizer, turns, tools, text)
        spans = []
        for index, message in enumerate(messages):
            if message.weight:
                find = _answer if message.role == "assistant" else _turn
                start, end = find(tokenizer, turns, tools, text, index)
                spans.append((start, end, message.weight))
        return Written(text, tuple(spans))


def _answer(tokenizer: "PreTrainedTokenizerBase", turns: Turns, tools: Tools, text: str, index: int) -> tuple[int, int]:
    """Where in the text an answer starts, behind its header, and where its end token ends."""
    name = f"turn {index + 1} of {len(turns)}"
    if index == 0:
        raise TemplateError(
            f"{name} is an answer to nothing: put a turn before it, or give it `train: false`",
            "it begins with an answer to nothing",
        )
    before = apply(tokenizer, turns[:index], tools, prompt=True)
    last = index + 1 == len(turns)
    after = (text if last else apply(tokenizer, turns[: index + 1], tools)).rstrip()
    if not last and not (text.startswith(before) and text.startswith(after)):
        raise TemplateError(
            f"{name} is written differently when it is answered alone than in the whole conversation, so it "
            "cannot be trained in place. data.template=per_turn makes a conversation of each answer, which ends with "
            "it; or give the turn `train: false`",
            "an earlier answer is written differently once others follow, see data.template=per_turn",
        )
    if not text.startswith(before):
        raise TemplateError(
            f"{name} does not begin with what chat sends before an answer, which ends with {before[-20:]!r}: the "
            "template's generation prompt and its assistant turns differ. Correct it in a copy (data.template.file)",
            "an answer does not begin with the generation prompt",
        )
    if not last_token(_behind(turns[index]["content"], after[len(before) :]), tokenizer):
        raise TemplateError(
            f"the template ends an answer with {after[-12:]!r}, which is no special token: a model trained "
            "on it would not learn to stop. Write eos_token after each assistant turn",
            "its answer ends with no special token",
        )
    return len(before), len(after)


def _turn(tokenizer: "PreTrainedTokenizerBase", turns: Turns, tools: Tools, text: str, index: int) -> tuple[int, int]:
    """Where in the text what a turn of another role says starts, and where its end token ends.

    A blank that the template writes before it, as in `User: Hello`, is mostly a part of the first word's token.
    """
    conversation = Conversation(tokenizer, turns, tools, text)
    start = conversation.find(index).start
    if start is None:
        return 0, 0
    joined = text[:start].endswith(" ") and not turns[index]["content"][0].isspace()
    return start - joined, conversation.turn_end(index)


def _behind(content: Any, answer: str) -> str:
    """What the template wrote behind an answer's own text, which may itself end like a special token."""
    said = content.strip() if isinstance(content, str) else ""
    return answer.partition(said)[2] if said and said in answer else answer


def _bare(turns: Turns, key: str) -> Turns:
    """The turns without one of their parts."""
    return [{part: turn[part] for part in turn if part != key} for turn in turns]


def _refuse_loss(tokenizer: "PreTrainedTokenizerBase", turns: Turns, tools: Tools, text: str) -> None:
    """Raise TemplateError for a part of the conversation without which the template writes the same text."""
    without: list[tuple[str, Turns, Tools]] = [("tools", turns, ())] if tools else []
    if any("tool_calls" in turn for turn in turns):
        without.append(("tool calls", _bare(turns, "tool_calls"), tools))
    thoughtful = [index for index, turn in enumerate(turns) if "reasoning_content" in turn]
    if thoughtful:  # a template may write it only while the answer is the last turn, and so it is asked then
        end = thoughtful[-1] + 1
        seen = text if end == len(turns) else apply(tokenizer, turns[:end], tools)
        if seen == apply(tokenizer, _bare(turns[:end], "reasoning_content"), tools):
            without.append(("reasoning", turns, tools))
    place = 0
    for index, turn in enumerate(turns):
        content = turn["content"]
        if not isinstance(content, str) or not content.strip():
            continue
        found = text.find(content.strip(), place) if turn["role"] != "tool" else -1
        if found >= 0:
            place = found + len(content.strip())
        else:  # left out, or written in another form or place
            other = [*turns[:index], turn | {"content": f"{content}?"}, *turns[index + 1 :]]
            article = "an" if turn["role"] == "assistant" else "a"
            without.append((f"{article} {turn['role']} turn (turn {index + 1})", other, tools))
    for name, less, fewer in without:
        try:
            lost = apply(tokenizer, less, fewer) == text
        except TemplateError:  # it cannot be written without, so it is not left out
            continue
        if lost:
            raise TemplateError(
                f"the conversation has {name}, and the chat template does not write it: use another template "
                "(data.template=NAME or data.template.file=FILE), or leave it out of the row",
                f"the conversation has {name.partition(' (')[0]}, which it does not write",
            )
