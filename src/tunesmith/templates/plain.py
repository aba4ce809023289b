"""A conversation as lines of text, for base models without a chat template."""

from typing import TYPE_CHECKING

from tunesmith.errors import TemplateError
from tunesmith.templates.jinja import Jinja

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{{ message.content + '\\n\\n' }}"
    "{%- elif message.role == 'assistant' -%}{{ 'Assistant: ' + message.content + eos_token + '\\n' }}"
    "{%- elif message.role == 'user' -%}{{ 'User: ' + message.content + '\\n' }}"
    "{%- else -%}{{ raise_exception('the plain template has no way to write the role ' + message.role) }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
)


class Plain(Jinja):
    """`User: ...` and `Assistant: ...` lines; each answer ends with the tokenizer's eos_token."""

    def prepare(self, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
        """The tokenizer with this template. Raises TemplateError when it has no eos_token to end answers."""
        if tokenizer.eos_token is None:
            raise TemplateError(
                f"the tokenizer of {tokenizer.name_or_path} has no eos_token, and the plain template ends "
                "answers with it: name one in its tokenizer_config.json"
            )
        return super().prepare(tokenizer)

    def text(self) -> str | None:
        """The file's jinja when the recipe names one, else the lines."""
        return super().text() or TEXT
