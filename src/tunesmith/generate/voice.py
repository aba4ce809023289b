"""One model in a chat: what was said to it and by it, and how its next answer is shown while it comes."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.generate.addressed import Addressed
from tunesmith.generate.asked import Sampling
from tunesmith.generate.engine import Generator
from tunesmith.generate.parse import Call, Said
from tunesmith.generate.speech import Own, Speech

Turn = dict[str, Any]
NOTHING = "(no answer: the question is not kept)"


class Voice:
    """A model that answers in a chat, and its own conversation without the system message."""

    def __init__(self, name: str, generator: Generator | Addressed) -> None:
        self.name, self.generator = name, generator
        self.turns: list[Turn] = []

    def answer(
        self,
        beginning: Sequence[Turn],
        sampling: Sampling,
        tools: Sequence[Mapping[str, Any]],
        show: Callable[..., None],
        say: Callable[[str], None],
        timed: bool,
    ) -> Turn | None:
        """Show the answer to the conversation while it comes, and return it as a turn; None where there is none.

        Ctrl-C ends it. Raises as `Generator.stream`, and ModelError where a server breaks off.
        """
        said, start = Said(), time.perf_counter()
        try:
            answer = self._begin([*beginning, *self.turns], tools, sampling)
        except KeyboardInterrupt:  # a server may think long before its first word
            say(NOTHING)
            return None
        if answer.dropped_turns:
            say(f"(the oldest {answer.dropped_turns} turns no longer fit the model's context)")
        try:
            for piece in answer:
                said += _shown(piece, show)
        except KeyboardInterrupt:
            show(" ...")
        finally:
            answer.close()
        show("\n")
        if answer.finish == "length":
            say(f"(cut at {answer.num_tokens} tokens; /params max_new_tokens=N or --max-new-tokens says how many)")
        elif timed:
            say(f"({answer.num_tokens} tokens, {answer.num_tokens / (time.perf_counter() - start):.0f}/s)")
        if not said:
            say(NOTHING)
            return None
        return _turn(said)

    def _begin(self, messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]], sampling: Sampling) -> Speech:
        if isinstance(self.generator, Addressed):
            return self.generator.speak(messages, tools, sampling)
        return Own(self.generator, messages, tools, sampling)

    def last_question(self) -> int | None:
        """The place of the last message of the person; None where there is none."""
        places = [place for place, turn in enumerate(self.turns) if turn["role"] == "user"]
        return places[-1] if places else None

    def forget_answer(self) -> None:
        """Take back the last answer, down to what it answers."""
        while self.turns[-1]["role"] == "assistant":
            self.turns.pop()


def _shown(said: Said, show: Callable[..., None]) -> Said:
    if said.reasoning:
        show(said.reasoning, dim=True)
    if said.content:
        show(said.content)
    for call in said.calls:
        show(f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})\n", dim=True)
    return said


def _turn(said: Said) -> Turn:
    turn: Turn = {"role": "assistant", "content": said.content}
    if said.reasoning:
        turn["reasoning_content"] = said.reasoning
    if said.calls:
        turn["tool_calls"] = [_call(call) for call in said.calls]
    return turn


def _call(call: Call) -> dict[str, Any]:
    told = {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
    return told if call.id is None else {"id": call.id, **told}
