"""A conversation as lines of text, for base models without a chat template."""

from tunesmith.templates.jinja import Jinja

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

    def text(self) -> str | None:
        """The file's jinja when the recipe names one, else the lines."""
        return super().text() or TEXT
