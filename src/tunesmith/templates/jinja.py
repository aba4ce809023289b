"""The template that the tokenizer ships with; what is trained is found by writing prefixes."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TemplateError
from tunesmith.seams import Template, Written
from tunesmith.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = list[dict[str, Any]]
Tools = tuple[Mapping[str, Any], ...]


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
                "say data.template=plain, or data.template.file=FILE"
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
        """The conversation's text; a trained turn spans from the generation prompt's end to its end token.

        Raises:
            TemplateError: the template refuses the conversation or leaves out a part of it, writes a trained
                turn differently once later turns follow, or ends an answer with no token to stop at.
        """
        turns = [message.spoken() for message in messages]
        text = _apply(tokenizer, turns, tools)
        _refuse_loss(tokenizer, turns, tools, text)
        spans = []
        for index, message in enumerate(messages):
            if message.weight:
                start, end = _answer(tokenizer, turns, tools, text, index)
                spans.append((start, end, message.weight))
        return Written(text, tuple(spans))


def _answer(tokenizer: "PreTrainedTokenizerBase", turns: Turns, tools: Tools, text: str, index: int) -> tuple[int, int]:
    """Where in the text an answer starts, behind its header, and where its end token ends."""
    name = f"turn {index + 1} of {len(turns)}"
    if turns[index]["role"] != "assistant":
        role = turns[index]["role"]
        raise TemplateError(f"{name} has the role {role}, and only assistant turns can be trained")
    if index == 0:
        raise TemplateError(f"{name} is an answer to nothing: put a turn before it, or give it `train: false`")
    before = _apply(tokenizer, turns[:index], tools, prompt=True)
    after = text if index + 1 == len(turns) else _apply(tokenizer, turns[: index + 1], tools)
    after = after.rstrip()
    if not (text.startswith(before) and text.startswith(after)):
        raise TemplateError(
            f"{name} is written differently when it is answered alone than in the whole conversation, so it "
            "cannot be trained in place. End the conversation with that turn, or give it `train: false`"
        )
    if not _stops(_behind(turns[index]["content"], after[len(before) :]), tokenizer):
        raise TemplateError(
            f"the template ends an answer with {after[-12:]!r}, which is no special token: a model trained "
            "on it would not learn to stop. Write eos_token after each assistant turn"
        )
    return len(before), len(after)


def _behind(content: Any, answer: str) -> str:
    """What the template wrote behind an answer's own text, which may itself end like a special token."""
    said = content.strip() if isinstance(content, str) else ""
    return answer.partition(said)[2] if said and said in answer else answer


def _stops(text: str, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a text ends with a token that can end a turn: EOS, or any other special or added one."""
    if tokenizer.eos_token and text.endswith(str(tokenizer.eos_token)):  # listing the others is slow
        return True
    return text.endswith((*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()))


def _refuse_loss(tokenizer: "PreTrainedTokenizerBase", turns: Turns, tools: Tools, text: str) -> None:
    """Raise TemplateError for a part of the conversation without which the template writes the same text."""
    without: list[tuple[str, Turns, Tools]] = [("tools", turns, ())] if tools else []
    for key, name in (("tool_calls", "tool calls"), ("reasoning_content", "reasoning")):
        if any(key in turn for turn in turns):
            bare = [{part: turn[part] for part in turn if part != key} for turn in turns]
            without.append((name, bare, tools))
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
            without.append((f"a {turn['role']} turn (turn {index + 1})", other, tools))
    for name, less, fewer in without:
        try:
            lost = _apply(tokenizer, less, fewer) == text
        except TemplateError:  # it cannot be written without, so it is not left out
            continue
        if lost:
            raise TemplateError(
                f"the conversation has {name}, and the chat template does not write it: use another template "
                "(data.template.file=FILE), or leave it out of the row"
            )


def _apply(tokenizer: "PreTrainedTokenizerBase", turns: Turns, tools: Tools, prompt: bool = False) -> str:
    from jinja2 import TemplateError as JinjaError

    try:
        text = tokenizer.apply_chat_template(
            turns, tools=[dict(tool) for tool in tools] or None, tokenize=False, add_generation_prompt=prompt
        )
    except (JinjaError, TypeError, ValueError) as error:
        raise TemplateError(f"the chat template refuses the conversation: {error}") from error
    assert isinstance(text, str)
    return text
