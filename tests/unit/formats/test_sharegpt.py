"""ShareGPT conversations: speakers, calls that are JSON text, and the columns beside them."""

import json

import pytest

from tunesmith.errors import DataError
from tunesmith.formats.sharegpt import Sharegpt
from tunesmith.types import Message

BARE = {"name": "warmth", "parameters": {"type": "object"}}


def said(speaker: str, value: object, **more: object) -> dict:
    return {"from": speaker, "value": value, **more}


def read(*turns: dict, **columns: object) -> tuple[Message, ...]:
    (branch,) = Sharegpt().read({"conversations": list(turns), **columns}).branches
    return branch


@pytest.mark.parametrize(
    ("speaker", "role"),
    {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "bing": "assistant",
     "chatgpt": "assistant", "system": "system", "observation": "tool", "tool": "tool", "function": "tool",
     "developer": "system"}.items(),
)  # fmt: skip
def test_speakers_are_roles(speaker, role):
    assert read(said("gpt", "call"), said(speaker, "x"))[1] == Message(role, "x")


def test_a_function_call_is_parsed():
    (turn,) = read(said("function_call", '{"name": "warmth", "arguments": {"city": "Oslo"}}'))
    call = {"type": "function", "function": {"name": "warmth", "arguments": {"city": "Oslo"}}}
    assert turn == Message("assistant", "", tool_calls=(call,))
    assert turn.weight == 1


def test_several_calls_and_arguments_that_are_text():
    value = json.dumps([{"name": "a", "arguments": '{"x": 1}'}, {"name": "b"}])
    (turn,) = read(said("function_call", value))
    assert [call["function"] for call in turn.tool_calls] == [
        {"name": "a", "arguments": {"x": 1}},
        {"name": "b", "arguments": {}},
    ]


@pytest.mark.parametrize("value", ["warmth(Oslo)", '{"city": "Oslo"}', '[{"name": "a"}, 3]', "[]", "3", ""])
def test_a_call_that_is_not_json_of_calls_stays_content(value):
    assert read(said("function_call", value)) == (Message("assistant", value),)


def test_system_and_tools_stand_beside_the_conversation():
    for tools in ([BARE], json.dumps([BARE])):
        row = {
            "conversations": [said("human", "hi"), said("gpt", "yo")],
            "system": "Be kind.",
            "tools": tools,
        }
        sample = Sharegpt().read(row)
        assert [turn.role for turn in sample.branches[0]] == ["system", "user", "assistant"]
        assert sample.tools == ({"type": "function", "function": BARE},)


def test_a_turn_may_say_that_it_is_not_trained():
    turns = read(said("human", "hi"), said("gpt", "no", weight=0), said("human", "hi"), said("gpt", "yes"))
    assert [turn.weight for turn in turns] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"conversations": []}, r"column 'conversations' is an empty list"),
        (
            {"conversations": [said("humann", "x")]},
            r"conversations\[0\].from is 'humann'. Did you mean 'human'\?",
        ),
        ({"conversations": [said("human", None)]}, r"conversations\[0\].value must be text and is null"),
        ({"conversations": [{"by": "user"}]}, r"conversations\[0\].from is missing; .* has the keys by"),
        ({"conversations": [{"role": "user"}]}, r"conversations\[0\].content is missing; .* has the keys role"),
        (
            {"conversations": [said("function_call", '{"name": "a", "arguments": [1]}')]},
            r"arguments must be an object",
        ),
        ({"conversations": [said("human", "x")], "videos": ["a"]}, r"0 marks <video>, and column 'videos' has 1 paths"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(row, problem):
    with pytest.raises(DataError, match=problem):
        Sharegpt().read(row)
