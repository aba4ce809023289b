"""The names that the turns of a conversation have in a file."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tunesmith.component import Section

Speaker = Literal["system", "user", "assistant", "call", "tool"]  # `call` is an assistant whose text is a call
Tag = Annotated[str, Field(min_length=1)]

USUAL: Mapping[str, Speaker] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "bing": "assistant",
    "chatgpt": "assistant", "function_call": "call", "system": "system", "developer": "system",
    "observation": "tool", "tool": "tool", "function": "tool",
}  # fmt: skip
USUAL_KEYS = (("from", "value"), ("role", "content"))  # who speaks, and what is said


class Tags(Section):
    """Names of a turn's keys and of its speakers, as LLaMA-Factory's dataset_info.json has them.

    The usual names are known beside the ones that are said here.
    """

    role_tag: Tag = "from"
    """Key that says who speaks."""
    content_tag: Tag = "value"
    """Key that holds what is said."""
    user_tag: Tag = "human"
    """Name of the user."""
    assistant_tag: Tag = "gpt"
    """Name of the assistant."""
    observation_tag: Tag = "observation"
    """Name of a tool that answers."""
    function_tag: Tag = "function_call"
    """Name of an assistant whose text is the JSON of calls."""
    system_tag: Tag = "system"
    """Name of the system message."""

    @model_validator(mode="after")
    def _distinct(self) -> "Tags":
        names = [name for name, _ in self._own()]
        for group in ([self.role_tag, self.content_tag], names):
            twice = next((name for name in group if group.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"two of the tags are {twice!r}: give each its own name")
        return self

    def _own(self) -> Iterator[tuple[str, Speaker]]:
        yield self.user_tag, "user"
        yield self.assistant_tag, "assistant"
        yield self.observation_tag, "tool"
        yield self.function_tag, "call"
        yield self.system_tag, "system"

    @cached_property
    def speakers(self) -> Mapping[str, Speaker]:
        """Who is meant by each name."""
        return {**USUAL, **dict(self._own())}

    def name_of(self, speaker: Speaker) -> str:
        """The name that a speaker is written with."""
        return next(name for name, one in self._own() if one == speaker)

    def keys_of(self, turn: Mapping[str, Any]) -> tuple[str, str]:
        """The keys of who speaks and what is said in one turn: the tags', or the usual ones that it has."""
        if self.role_tag not in turn:
            for keys in USUAL_KEYS:
                if keys[0] in turn:
                    return keys
        return self.role_tag, self.content_tag


OPENAI = Tags(
    role_tag="role", content_tag="content", user_tag="user", assistant_tag="assistant", observation_tag="tool"
)
