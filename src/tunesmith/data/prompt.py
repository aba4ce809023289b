"""The tokens that stand before an answer: the same function for chat, serving, and the check of what is trained."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None
) -> list[int]:
    """The tokens of a conversation and of the header of an answer to come.

    Without a chat template the last user message alone is the prompt; where it is empty or there is none, [].

    Raises:
        TemplateError: the chat template refuses the conversation.
    """
    if not tokenizer.chat_template:
        asked = _asked(messages)
        return list(tokenizer(asked)["input_ids"]) if asked else []
    ids = _templated(
        tokenizer,
        messages,
        tools,
        return_dict=False,
        tokenizer_kwargs={"verbose": False},  # it warns of a long prompt, which the run counts or refuses itself
    )
    return list(ids)


def prompt_text(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None
) -> str:
    """The text that `prompt_ids` cuts into tokens. Raises as that."""
    if not tokenizer.chat_template:
        return _asked(messages)
    return str(_templated(tokenizer, messages, tools, tokenize=False))


def _asked(messages: Sequence[Mapping[str, Any]]) -> str:
    asked = [turn["content"] for turn in messages if turn["role"] == "user"][-1:]
    return asked[0] if asked and asked[0] else ""


def _templated(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    **options: Any,
) -> Any:
    from jinja2 import TemplateError as JinjaError

    turns, shown = [dict(turn) for turn in messages], list(tools) if tools else None
    try:
        return tokenizer.apply_chat_template(turns, tools=shown, add_generation_prompt=True, **options)
    except (JinjaError, TypeError, ValueError) as error:
        raise TemplateError(f"the chat template refuses this conversation: {error}") from error


def notes(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """What is to be said of a chat template before rows are written with it: that it writes the day."""
    if "strftime_now" not in str(tokenizer.chat_template or ""):
        return ()
    return (
        "the chat template can write the date of the day (strftime_now): rows that are rendered on another day may be "
        "other tokens, with which a run cannot go on. A copy with a fixed date (data.template.file) avoids it",
    )
