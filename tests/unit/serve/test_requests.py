"""Bodies of requests: values of the kind that JSON has them in, and refusals as fast as what they are of is read."""

import json
import time

import pytest

from tunesmith.serve.problem import Problem
from tunesmith.serve.requests import Chat, Completion, Embedding, Score, read

TURNS = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "warmth"}}


def refused(kind, **body):
    with pytest.raises(Problem) as caught:
        read(kind, json.dumps(({"messages": TURNS} if kind is Chat else {}) | body).encode())
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("kind", "body", "param", "said"),
    [
        (Completion, {"prompt": ["a"] * 300_000}, "prompt", "must have at most 2048 items"),
        (Completion, {"prompt": [[1]] * 300_000}, "prompt", "must have at most 2048 items"),
        (Completion, {"prompt": [1.5] * 300_000}, "prompt", "prompt.0: must be an integer"),
        (Embedding, {"input": [["a"] * 300_000]}, "input", "input.0.0: must be an integer"),
        (Score, {"input": [{"text": "a"}] * 300_000}, "input", "must have at most 2048 items"),
        (Chat, {"messages": [1] * 300_000}, "messages", "messages.0: must be a mapping"),
        (Chat, {"tools": [1] * 300_000}, "tools", "tools.0: must be a mapping"),
        (Chat, {"stop": ["a"] * 300_000}, "stop", "must have at most 16 items, and has 300,000"),
        (Chat, {"logit_bias": {str(at): "a" for at in range(300_000)}}, "logit_bias", "at most 1,024 items"),
        (Chat, {f"field{at}": 1 for at in range(300_000)}, None, "at most 256 fields, and has 300,001"),
        (Chat, {"tool_choice": "r" * 3_000_000}, "tool_choice", "must be none, auto, required or a mapping"),
        (Chat, {"r" * 3_000_000: 1}, "r" * 3_000_000, "no such option"),
    ],
)  # fmt: skip
def test_a_body_of_many_mistakes_is_refused_at_once(kind, body, param, said):
    begun = time.process_time()
    problem = refused(kind, **body)
    assert time.process_time() - begun < 5
    first, *more = str(problem).splitlines()
    assert said in first[-400:] or said in first[:400]
    assert len(more) <= 10 and problem.param == param


def test_ten_problems_are_told_and_the_others_counted():
    lines = str(refused(Chat, **{f"field{at}": 1 for at in range(200)})).splitlines()
    assert len(lines) == 11 and lines[-1] == "and 190 more"


@pytest.mark.parametrize(
    ("kind", "body", "param", "said"),
    [
        (Chat, {"max_tokens": True}, "max_tokens", "max_tokens: must be an integer (it was True)"),
        (Chat, {"n": "1"}, "n", "n: must be an integer (it was '1')"),
        (Chat, {"temperature": True}, "temperature", "temperature: must be a number (it was True)"),
        (Chat, {"stream": "1"}, "stream", "stream: must be true or false (it was '1')"),
        (Chat, {"stream_options": {"include_usage": 1}}, "stream_options", "stream_options.include_usage: must"),
        (Chat, {"logit_bias": {"a": 1}}, "logit_bias", "logit_bias.a: must be an integer"),
        (Chat, {"top_logprobs": 3}, "top_logprobs", "top_logprobs: needs logprobs: true"),
        (Chat, {"tools": [TOOL, TOOL]}, "tools", "tools: must have different names, and two are called 'warmth'"),
        (Chat, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools",
         "tools.0.function.name: must be 1 to 128 letters, digits, and any of _ . - (it was 'a b')"),
        (Chat, {"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format",
         "response_format.json_schema: belongs to the type json_schema"),
        (Completion, {"prompt": [1.5]}, "prompt", "prompt.0: must be an integer (it was 1.5)"),
        (Completion, {"prompt": [True]}, "prompt", "prompt.0: must be an integer (it was True)"),
        (Completion, {"prompt": ["a", 1]}, "prompt", "prompt.1: must be text (it was 1)"),
        (Completion, {"prompt": []}, "prompt", "prompt: must have at least 1 item"),
        (Completion, {"prompt": 5}, "prompt", "prompt: must be a text, a list of texts, a list of tokens, or"),
        (Completion, {"prompt": "a", "max_tokens": 0}, "max_tokens", "max_tokens: is 0, and without echo"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_of_its_field(kind, body, param, said):
    problem = refused(kind, **body)
    assert str(problem).startswith(said) and problem.param == param


def test_a_number_of_too_many_digits_is_named():
    with pytest.raises(Problem, match="^max_tokens: a number has more than 4,300 digits$") as caught:
        read(Chat, b'{"messages": [{}], "max_tokens": ' + b"1" * 5000 + b"}")
    assert caught.value.param == "max_tokens"


def test_what_is_right_is_taken():
    body = {"messages": TURNS, "tools": [TOOL], "tool_choice": TOOL, "temperature": 1, "logit_bias": {"5": 1}}
    found = read(Chat, json.dumps(body).encode())
    assert found.logit_bias == {5: 1.0} and found.tool_choice.function.name == "warmth"
    for prompt in ("a", ["a", "b"], [1, 2], [[1], [2, 3]], list(range(5000))):
        assert read(Completion, json.dumps({"prompt": prompt}).encode()).prompt == prompt
    for given in ("a", ["a"], {"text": "a"}, [{"text": "a"}]):
        assert read(Score, json.dumps({"input": given}).encode()).input == given
    assert Completion.model_json_schema()["properties"]["prompt"]
