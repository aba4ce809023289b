"""What is sent to a model for a request is what stood before the answer when it was trained: token by token."""

import json

import pytest

import fixtures_models
import fixtures_server
from golden.chats import Shape, conversation
from golden.test_families import GOLDEN, tokenizer_of
from tunesmith.data.render import Renderer
from tunesmith.errors import TunesmithError
from tunesmith.formats.messages import Messages
from tunesmith.recipe import Recipe
from tunesmith.serve.chat import plan
from tunesmith.serve.requests import Chat, read
from tunesmith.serve.served import Speaker
from tunesmith.templates.family import names

OWN = Shape(tools=True, calls=2, rounds=2, said=True, reasoning=True)
TEMPLATES = ["jinja", *names()]


@pytest.fixture(scope="module")
def served():
    found = fixtures_server.served(fixtures_models.tiny_model(max_position_embeddings=100_000))
    yield found
    found.close()


def prepared(name):
    """A renderer of training rows, and the shape of conversations that its template can write."""
    recipe = Recipe(
        model="builtin:tiny", data={"train": "rows.jsonl", "template": name, "max_tokens": 100_000}, objective="sft"
    )
    tokenizer = fixtures_models.tiny_tokenizer() if name == "jinja" else tokenizer_of(name)
    shape = OWN if name == "jinja" else Shape(**GOLDEN[name]["shape"])
    return Renderer(recipe.data, recipe.objective, recipe.data.template.prepare(tokenizer)), shape


def asked(turns, tools):
    """The body of a request as a client sends it: arguments are JSON text there."""
    sent = json.loads(json.dumps(turns))
    for turn in sent:
        for call in turn.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return json.dumps({"model": "tiny", "messages": sent} | ({"tools": tools} if tools else {})).encode()


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ids_of_a_request_are_those_before_the_trained_answer(served, monkeypatch, name):
    renderer, shape = prepared(name)
    monkeypatch.setitem(served.speakers, "tiny", Speaker("tiny", renderer.tokenizer))
    equal = joined = called = thought = 0
    for seed in range(25):
        messages, tools = conversation(seed, shape)
        for end in [place for place, turn in enumerate(messages) if turn["role"] == "assistant"]:
            before = [turn | ({"train": False} if turn["role"] == "assistant" else {}) for turn in messages[:end]]
            row = {"messages": [*before, messages[end]]} | ({"tools": tools} if tools else {})
            try:
                (rendered,) = renderer.render([("rows:1", row)], Messages())
            except TunesmithError:  # the template refuses this one, or cannot train it
                continue
            (tokens,) = rendered.branches
            trained = tokens.ids[: int((tokens.weight != 0).argmax())].tolist()
            sent = list(plan(served, read(Chat, asked(messages[:end], tools))).requests[0].prompt)
            if sent != trained:  # the tokenizer joins the header's end and the answer's beginning, which is not learned
                assert sent[:-1] == trained[:-1]
                whole, beginning = (renderer.tokenizer.decode(ids[-1:]) for ids in (trained, sent))
                assert whole.startswith(beginning) and not whole.strip()
            equal, joined = equal + (sent == trained), joined + (sent != trained)
            called += any("tool_calls" in turn for turn in messages[:end])
            thought += any("reasoning_content" in turn for turn in messages[:end])
    assert equal > 20 and joined < 0.4 * equal
    assert bool(called) == shape.tools and bool(thought) == shape.reasoning
