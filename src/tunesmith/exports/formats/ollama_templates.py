"""The Go template that writes what a tokenizer's own chat template writes: found by rendering both."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.prompt import prompt_ids
from tunesmith.errors import RunError, TemplateError
from tunesmith.exports.formats import go_template

TELL, ASK, SAY, MORE = (
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "What is 17 + 25?\nSay it in one word."},
    {"role": "assistant", "content": "42, of course."},
    {"role": "user", "content": "And in German: zwei Wörter?"},
)
CALL: Mapping[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "id": "abcdefgh1", "function": {"name": "add", "arguments": {"a": 17, "b": 25}}},
        {"type": "function", "id": "abcdefgh2", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}},
    ],
}
GIVEN = tuple({"role": "tool", "content": text, "tool_call_id": f"abcdefgh{at}"} for at, text in ((1, "42"), (2, "3")))
TOOLS: tuple[Mapping[str, Any], ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} two numbers",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
        },
    }
    for name in ("add", "multiply")
)
PLAIN = ((ASK,), (ASK, SAY, MORE), (TELL, ASK), (TELL, ASK, SAY, MORE))
CALLING = ((ASK,), (TELL, ASK), (ASK, CALL, *GIVEN), (TELL, ASK, CALL, *GIVEN, SAY, MORE), (ASK, SAY, MORE))


@dataclass(frozen=True, slots=True)
class Template:
    """A row of `ollama_templates.yaml`, and whether it writes tools for the tokenizer that it was found for."""

    name: str
    text: str
    tools: bool


@functools.cache
def rows() -> tuple[Template, ...]:
    """All of them."""
    import yaml

    rows = yaml.safe_load((Path(__file__).parent / "ollama_templates.yaml").read_text(encoding="utf-8"))
    return tuple(Template(name, row["template"], row.get("tools", False)) for name, row in rows.items())


def found(tokenizer: Any) -> Template:
    """The template that is read as the same tokens as the tokenizer's own, on some conversations.

    Raises RunError where none is.
    """
    for row in rows():
        text = row.text.replace("EOS", tokenizer.eos_token)
        if all(_same(tokenizer, text, messages) for messages in PLAIN):
            tools = row.tools and all(_same(tokenizer, text, messages, TOOLS) for messages in CALLING)
            return Template(row.name, text, tools)
    raise RunError(
        f"no Go template writes what the chat template {_beginning(tokenizer)!r} writes (known: "
        f"{', '.join(row.name for row in rows())}): export type=gguf, which has the run's own for llama.cpp"
    )


def _beginning(tokenizer: Any) -> str:
    return re.sub(r"\s+", " ", tokenizer.chat_template)[:60]


def _same(tokenizer: Any, template: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = ()) -> bool:
    """Whether both are read as the same tokens; a conversation that the tokenizer's own refuses tells nothing."""
    try:
        own = prompt_ids(tokenizer, messages, tools)
    except TemplateError:
        return True
    return own == list(tokenizer(written(template, messages, tools), verbose=False)["input_ids"])


def written(template: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = ()) -> str:
    """What Ollama writes of a conversation; JSON as Python writes it, with spaces, where Ollama has none."""
    values = {
        "Messages": [
            {
                "Role": turn["role"],
                "Content": turn["content"],
                "ToolCalls": [
                    {"Function": {"Name": call["function"]["name"], "Arguments": call["function"]["arguments"]}}
                    for call in turn.get("tool_calls", ())
                ],
            }
            for turn in messages
        ],
        "Tools": [{"Type": tool["type"], "Function": tool["function"]} for tool in tools],
    }
    return go_template.render(template, values)
