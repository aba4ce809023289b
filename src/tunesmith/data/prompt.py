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
    from jinja2 import TemplateError as JinjaError

    if not tokenizer.chat_template:
        asked = [turn["content"] for turn in messages if turn["role"] == "user"][-1:]
        return list(tokenizer(asked[0])["input_ids"]) if asked and asked[0] else []
    try:
        ids = tokenizer.apply_chat_template(
            [dict(turn) for turn in messages],
            tools=list(tools) if tools else None,
            add_generation_prompt=True,
            return_dict=False,
            tokenizer_kwargs={"verbose": False},  # it warns of a long prompt, which the run counts or refuses itself
        )
    except (JinjaError, TypeError, ValueError) as error:
        raise TemplateError(f"the chat template refuses this conversation: {error}") from error
    return ids  # type: ignore[return-value]


def notes(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """What is to be said of a chat template before rows are written with it: that it writes the day."""
    if "strftime_now" not in str(tokenizer.chat_template or ""):
        return ()
    return (
        "the chat template can write the date of the day (strftime_now): rows that are rendered on another day may be "
        "other tokens, with which a run cannot go on. A copy with a fixed date (data.template.file) avoids it",
    )
