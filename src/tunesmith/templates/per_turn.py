"""The tokenizer's template, each answer trained in a conversation that ends with it."""

from dataclasses import replace

from tunesmith.templates.jinja import Jinja
from tunesmith.types import Message


class PerTurn(Jinja):
    """One conversation for each trained turn, for templates that write earlier turns in another way than the last.

    Reasoning models are so: Qwen3 and DeepSeek-R1 leave the thoughts of earlier answers out. What stands before the
    trained turn is written once for each; what the conversations have in common stands in a row once, where they fit in
    data.max_tokens together (`data.shared_prefix`).
    """

    def divide(self, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], ...]:
        """The beginnings of the conversation that end with a trained turn, which alone is trained there."""
        return divide(messages)


def divide(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], ...]:
    """For each trained turn the conversation up to it, the earlier turns not trained; the whole one if none is."""
    ends = [index for index, turn in enumerate(messages) if turn.weight]
    context = tuple(replace(turn, train=False) for turn in messages)
    return tuple((*context[:end], messages[end]) for end in ends) or (messages,)
