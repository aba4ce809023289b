"""Seeded random conversations of a shape that a chat format can hold. `random.Random` draws the same everywhere."""

import json
from dataclasses import dataclass
from random import Random

WORDS = (
    "river", "the", "Moon", "is", "naïve", "Köln", "你好", "世界", "🙂", "👩‍👩‍👧", "e\u0301", "<b>",
    "{{ x }}", "{% if %}", "\n", "\n\n", "\t", "  ", "def f(a):\n    return a", '"quoted"', "back\\slash",
    "0.5", "—", "\u200b", "Assistant:", "USER:", "[INST", "'",
)  # fmt: skip
EDGES = ("", "", "", " ", "\n", "\n\n ", "\t")
TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f'Tells the {name} of a place, "now".',
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
    for name in ("warmth", "wind_speed")
)


@dataclass(frozen=True)
class Shape:
    """What may be in a conversation."""

    system: bool = True
    tools: bool = False  # calls and their results
    listed: bool = True  # the tools are given beside the conversation
    calls: int = 1  # at most in one answer
    rounds: int = 1  # of calls, at most in one conversation
    said: bool = False  # text beside calls
    reasoning: bool = False
    disorder: bool = False  # some have two questions in a row


def words(random: Random) -> str:
    """A text that says something, often with blanks around it."""
    chosen = [random.choice(WORDS) for _ in range(random.randint(1, 8))]
    return f"{random.choice(EDGES)}{' '.join(chosen)} so{random.choice(EDGES)}"


def conversation(seed: int, shape: Shape):
    """Messages, of which the last is an answer, and tools."""
    random = Random(seed)
    messages = [{"role": "system", "content": words(random)}] if shape.system and random.random() < 0.5 else []
    rounds = shape.rounds if shape.tools and random.random() < 0.6 else 0
    for _ in range(random.randint(1, 4)):
        messages.append({"role": "user", "content": words(random)})
        if shape.disorder and random.random() < 0.04:
            messages.append({"role": "user", "content": words(random)})
        while rounds and random.random() < 0.6:
            rounds -= 1
            messages += _round(random, shape)
        messages.append(_answer(random, shape, words(random)))
    return messages, list(TOOLS[: random.randint(1, 2)]) if shape.tools and shape.listed else []


def _round(random: Random, shape: Shape):
    """An answer that calls, and the results."""
    calls = [
        {
            "id": f"call{random.randint(10_000, 99_999)}",
            "type": "function",
            "function": {
                "name": random.choice(TOOLS)["function"]["name"],
                "arguments": {"place": words(random), "days": random.randint(0, 9)},
            },
        }
        for _ in range(random.randint(1, shape.calls))
    ]
    said = words(random) if shape.said and random.random() < 0.5 else ""
    yield _answer(random, shape, said) | {"tool_calls": calls}
    for call in calls:
        yield {"role": "tool", "content": json.dumps({"degrees": random.randint(-9, 40)}), "tool_call_id": call["id"]}


def _answer(random: Random, shape: Shape, said: str):
    answer = {"role": "assistant", "content": said}
    if shape.reasoning and random.random() < 0.6:
        thought = words(random)
        if said and random.random() < 0.5:
            return answer | {"content": f"<think>\n{thought}\n</think>\n\n{said}"}
        return answer | {"reasoning_content": thought}
    return answer
