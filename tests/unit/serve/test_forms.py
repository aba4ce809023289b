"""Answers that a request wants in a form, asked by the official client of a server on loopback."""

import json
import re
import threading
from pathlib import Path
from typing import Literal

import openai
import pydantic
import pytest

import fixtures_models
import fixtures_server
from fixtures_answers import PLAIN
from tunesmith.generate import constraint
from tunesmith.generate.choose import decoder_for

pytest.importorskip("llguidance", reason="answers are held to a form by llguidance, which is not installed")

ASK = [{"role": "user", "content": "Who is there?"}]
MOST = 170


class Person(pydantic.BaseModel):
    name: Literal["Ann", "Bö"]
    ages: pydantic.conlist(pydantic.conint(ge=0, le=150), min_length=1, max_length=2)


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WARMTH = tool("warmth", place={"enum": ["Oslo", "Köln"]}, days={"type": "integer", "maximum": 9, "minimum": 0})
WIND = tool("wind", at={"type": "boolean"})


@pytest.fixture(scope="module")
def server():
    model = fixtures_models.tiny_model(max_position_embeddings=fixtures_server.CONTEXT)
    served = fixtures_server.served(model, fixtures_models.tiny_tokenizer(PLAIN), alone=False)
    served.worker.batch.decoder = decoder_for(model)
    with fixtures_server.running(served) as running:
        yield running


def ask(server, **options):
    return server.client().chat.completions.create(model="tiny", messages=ASK, **({"max_tokens": MOST} | options))


def test_a_schema_is_kept_to_and_parsed_by_the_client(server):
    for seed in range(3):
        found = server.client().chat.completions.parse(
            model="tiny", messages=ASK, max_tokens=MOST, seed=seed, response_format=Person
        )
        choice = found.choices[0]
        assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, Person)
        assert found.usage.completion_tokens < MOST
    with server.client().chat.completions.stream(
        model="tiny", messages=ASK, max_tokens=MOST, seed=seed, response_format=Person
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == choice.message.parsed


def test_any_object_is_an_object(server):
    bias = {str(token): 30 for token in server.served.generator.tokenizer('}"')["input_ids"]}
    found = ask(server, response_format={"type": "json_object"}, logit_bias=bias, seed=1, n=2)
    assert all(isinstance(json.loads(choice.message.content), dict) for choice in found.choices)


def test_a_regular_expression_is_kept_to(server):
    form = {"structured_outputs": {"regex": "[a-c]{3,20}-[0-9]"}}
    found = ask(server, extra_body=form, n=4, seed=1)
    texts = [choice.message.content for choice in found.choices]
    assert all(re.fullmatch("[a-c]{3,20}-[0-9]", text) for text in texts) and len({*texts}) > 1
    said = server.client().completions.create(model="tiny", prompt="It is", max_tokens=50, extra_body=form)
    assert re.fullmatch("[a-c]{3,20}-[0-9]", said.choices[0].text) and said.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_required_comes(server, stream):
    found = ask(server, tools=[WARMTH, WIND], tool_choice="required", parallel_tool_calls=False, stream=stream, seed=2)
    if stream:
        chunks = [chunk.choices[0] for chunk in found]
        calls = [call for one in chunks for call in one.delta.tool_calls or ()]
        content, finish = "".join(one.delta.content or "" for one in chunks), chunks[-1].finish_reason
    else:
        calls, content = found.choices[0].message.tool_calls, found.choices[0].message.content or ""
        finish = found.choices[0].finish_reason
    (call,) = calls
    given = json.loads(call.function.arguments)
    assert (content, finish) == ("", "tool_calls")
    assert given in ({"at": True}, {"at": False}) if call.function.name == "wind" else 0 <= given["days"] <= 9


def test_the_named_tool_is_the_one_that_is_called(server):
    for name in ("warmth", "wind"):
        named = {"type": "function", "function": {"name": name}}
        (call,) = ask(server, tools=[WARMTH, WIND], tool_choice=named).choices[0].message.tool_calls
        assert call.function.name == name


def test_beside_tools_a_form_is_for_what_is_said(server):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "hm"}}}
    options = {"tools": [WIND], "response_format": form, "n": 20, "seed": 5, "temperature": 2}
    options |= {"parallel_tool_calls": False}
    messages = [choice.message for choice in ask(server, **options).choices]
    assert {message.content for message in messages} == {None, '"hm"'}
    assert all(bool(message.tool_calls) == (message.content is None) for message in messages)
    messages = [choice.message for choice in ask(server, **options, tool_choice="none").choices]
    assert {message.content for message in messages} == {'"hm"'}


def test_held_and_free_answers_are_made_side_by_side(server):
    alone = ask(server, temperature=0).choices[0].message.content
    found = {}

    def one(place):
        options = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "hm"}}}}
        answer = ask(server, temperature=0, **(options if place % 2 else {}))
        found[place] = answer.choices[0].message.content

    threads = [threading.Thread(target=one, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(6)] == [alone, '"hm"'] * 3


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "objekt"}}}},
         "response_format", "Invalid type: objekt"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
         "response_format", "not"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "schema"),
        ({"response_format": {"type": "yaml"}}, "response_format", "'yaml'"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "unclosed group"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, None, "say one"),
        ({"tools": [tool("warmth", place={"type": "x"})], "tool_choice": "required"}, "tools", "parameters of warmth"),
        ({"tools": [WIND], "tool_choice": {"type": "function", "function": {"name": "rain"}}}, None, "names 'rain'"),
    ],
)  # fmt: skip
def test_a_form_that_is_none_is_refused(server, asked, param, said):
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        ask(server, extra_body=asked)
    assert caught.value.param == param and caught.value.type == "invalid_request_error"


def test_a_template_that_writes_no_calls_can_require_none():
    bare = fixtures_models.tiny_tokenizer("{% for turn in messages %}{{ turn.content }}{% endfor %}")
    with (
        fixtures_server.running(fixtures_server.served(tokenizer=bare)) as server,
        pytest.raises(openai.BadRequestError, match="a call of a tool cannot be made sure of") as caught,
    ):
        ask(server, tools=[WIND], tool_choice="required")
    assert (caught.value.param, caught.value.code) == ("tool_choice", "unsupported")


def test_an_answer_that_cannot_be_held_any_further_is_an_error(server, monkeypatch):
    look = constraint.Held._look

    def fails_later(held):
        look(held)
        held.seen = getattr(held, "seen", 0) + 1
        held.problem = "it is too much" if held.seen == 4 else None

    monkeypatch.setattr(constraint.Held, "_look", fails_later)
    form = {"structured_outputs": {"regex": "a{50}"}}
    with pytest.raises(openai.BadRequestError, match="behind 3 tokens: it is too much") as caught:
        ask(server, extra_body=form)
    assert caught.value.code == "invalid_form"
    with pytest.raises(openai.APIError, match="it is too much"):
        list(ask(server, extra_body=form, stream=True))
    assert server.served.worker.healthy and server.served.worker.num_running == 0


def _large(number, required=(), **more):
    return {"type": "object", "properties": {f"p{at}": {"type": "integer"} for at in range(number)},
            "required": [*required], "additionalProperties": False, **more}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (_large(2000), "2,000 properties that may be left out (p0, p1 ...), and no answer can be held to more than"),
        ({"anyOf": [{"type": "array", "items": _large(600)}, {"type": "null"}]}, "600 properties"),
        (_large(2000) | {"required": 5}, "2,000 properties"),
        (
            {"anyOf": [_large(400, title=f"{at}") for at in range(8)]},
            "the answer cannot be held to its form",
        ),  # each is small enough, together they are not
        (_large(2000, required=[f"p{at}" for at in range(2000)]), None),
        (_large(480), None),
        ({"enum": [f"value {at}" for at in range(2000)]}, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_huge_schema_is_kept_to_or_refused(server, schema, said, stream):
    form = {"type": "json_schema", "json_schema": {"name": "huge", "schema": schema}}
    if said is None:
        answer = ask(server, response_format=form, temperature=0, stream=stream)
        text = (
            "".join(c.choices[0].delta.content or "" for c in answer) if stream else answer.choices[0].message.content
        )
        assert text and (text[0] in '{"')
        return
    kind = openai.APIError if stream else openai.BadRequestError
    with pytest.raises(kind, match=re.escape(said)) as caught:
        list(ask(server, response_format=form, stream=stream))
    assert caught.value.code == "invalid_form" and server.served.worker.healthy
    bare = {"type": "function", "function": {"name": "huge", "parameters": schema}}
    with pytest.raises(openai.BadRequestError):
        ask(server, tools=[bare], tool_choice="required")


def test_the_guide_does_as_it_says(server, monkeypatch, capsys):
    monkeypatch.setitem(server.served.drawn, "temperature", 0.0)
    page = (Path(__file__).parents[3] / "docs" / "guide" / "serve.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    for block in blocks:
        space = {}
        exec(block.replace("http://127.0.0.1:8000", server.address).replace('model="first"', 'model="tiny"'), space)
        space["client"].close()
    said = capsys.readouterr().out
    assert len(blocks) == 3 and re.search(r"mood='(glad|sad)' sure=(True|False)\n", said)
    assert re.search(r"""arguments='{"place": "(Oslo|Rome)"}', name='warmth'""", said)
