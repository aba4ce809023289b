"""A conversation as the text that a tokenizer's chat template writes, and the tokens that can end its turns."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = list[dict[str, Any]]
Tools = tuple[Mapping[str, Any], ...]


def apply(tokenizer: "PreTrainedTokenizerBase", turns: Turns, tools: Tools, prompt: bool = False) -> str:
    """The text of some turns, with the header of an answer to come where `prompt` says so.

    Raises:
        TemplateError: the template refuses the conversation.
    """
    from jinja2 import TemplateError as JinjaError

    try:
        text = tokenizer.apply_chat_template(
            turns, tools=[dict(tool) for tool in tools] or None, tokenize=False, add_generation_prompt=prompt
        )
    except (JinjaError, TypeError, ValueError) as error:
        raise TemplateError(f"the chat template refuses the conversation: {error}", f"{error}") from error
    assert isinstance(text, str)
    return text


def last_token(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The token that can end a turn and ends this text: EOS, or any other special or added one; empty for none."""
    if tokenizer.eos_token and text.endswith(str(tokenizer.eos_token)):  # listing the others is slow
        return str(tokenizer.eos_token)
    return max((token for token in ending_tokens(tokenizer) if text.endswith(token)), key=len, default="")


def ending_tokens(tokenizer: "PreTrainedTokenizerBase") -> Sequence[str]:
    """The special and added tokens, any of which a template may end turns with."""
    return [token for token in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()) if token]
