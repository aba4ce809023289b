"""The template that the tokenizer ships with; the trained spans are found by writing prefixes of the conversation."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TemplateError
from tunesmith.seams import Template, Written
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
                "say data.template=plain, or data.template.file=FILE"
            )
        return tokenizer

    def text(self) -> str | None:
        """The jinja text that replaces the tokenizer's, if any."""
        if self.file is None:
            return None
        try:
            return Path(self.file).read_text(encoding="utf-8")
        except OSError as error:
            raise TemplateError(
                f"data.template.file: {self.file} cannot be read: {error.strerror}"
            ) from error

    def write(
        self,
        messages: tuple[Message, ...],
        tools: tuple[Mapping[str, Any], ...],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> Written:
        """The conversation's text; a trained turn spans from the generation prompt's end to its end-of-turn token.

        Raises:
            TemplateError: the template refuses the conversation, drops its tools, writes a trained turn differently
                once later turns follow, or ends an answer with nothing that a model could stop at.
        """
        turns = [message.spoken() for message in messages]
        if tools and "tools" not in tokenizer.get_chat_template():
            raise TemplateError("the conversation has tools, and the chat template does not write them")
        last = len(turns)
        text = _apply(tokenizer, turns, tools, prompt=False)
        spans = []
        for index, message in enumerate(messages):
            if not message.weight:
                continue
            before = _apply(tokenizer, turns[:index], tools, prompt=True)
            after = text if index + 1 == last else _apply(tokenizer, turns[: index + 1], tools, prompt=False)
            after = after.rstrip()
            if not (text.startswith(before) and text.startswith(after)):
                raise TemplateError(
                    f"turn {index + 1} of {last} is written differently when it is answered alone than in the whole "
                    "conversation, so it cannot be trained in place. End the conversation with that turn, or give it "
                    "`train: false`"
                )
            if not after.endswith(_stops(tokenizer)):
                raise TemplateError(
                    f"the template ends an answer with {after[-12:]!r}, which is no special token: a model trained "
                    "on it would not learn to stop. Write eos_token after each assistant turn"
                )
            spans.append((len(before), len(after), message.weight))
        return Written(text, tuple(spans))


def _apply(
    tokenizer: "PreTrainedTokenizerBase",
    turns: list[dict[str, Any]],
    tools: tuple[Mapping[str, Any], ...],
    prompt: bool,
) -> str:
    from jinja2 import TemplateError as JinjaError

    try:
        text = tokenizer.apply_chat_template(
            turns, tools=[dict(tool) for tool in tools] or None, tokenize=False, add_generation_prompt=prompt
        )
    except (JinjaError, TypeError, ValueError) as error:
        raise TemplateError(f"the chat template refuses the conversation: {error}") from error
    assert isinstance(text, str)
    return text


def _stops(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """The tokens that may end a turn: every special or added one."""
    return tuple({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})
