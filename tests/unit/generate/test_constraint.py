"""Answers that are held to a form are of that form, end only when they are whole, and change no other answer."""

import json
import re
from random import Random

import pytest
import torch

import fixtures_models
from fixtures_answers import TEMPLATES, of_template, written
from golden.chats import TOOLS, conversation
from golden.test_families import GOLDEN, Shape, tokenizer_of
from tunesmith.errors import ModelError, RecipeError, RunError, TemplateError
from tunesmith.generate.answer_format import Tagged
from tunesmith.generate.asked import Sampling
from tunesmith.generate.batch import Batch, Request
from tunesmith.generate.choose import decoder_for
from tunesmith.generate.constraint import Forms, Held, json_rule, regex_rule
from tunesmith.generate.engine import Generator
from tunesmith.generate.parse import parse
from tunesmith.templates.family import Family, facts, names

pytest.importorskip("llguidance", reason="answers are held to a form by llguidance, which is not installed")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dög"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
WARMTH = {"type": "function", "function": {"name": "warmth", "parameters": PERSON}}
WIND = {"type": "function", "function": {"name": "wind_speed"}}


def is_person(value):
    return (
        list(value) == ["name", "age", "kind"]
        and len(value["name"]) <= 6
        and value["age"] in range(151)
        and value["kind"] in ("cat", "dög")
    )


@pytest.fixture(scope="module")
def tokenizer():
    return fixtures_models.tiny_tokenizer()


@pytest.fixture(scope="module")
def forms(tokenizer):
    return Forms(tokenizer, [tokenizer.eos_token_id])


def allowed(held, rows):
    logits = torch.zeros(rows)
    held.allow(logits)
    return torch.nonzero(logits == 0)[:, 0].tolist()


def follow(form, tokenizer, text):
    """An answer held to a form behind a text, or the first token that the form refuses."""
    held = form.begin()
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if held.is_whole or token not in allowed(held, len(tokenizer)):
            return tokenizer.decode([token])
        held.accept(token)
    return held


def is_whole(form, tokenizer, text):
    """Whether a text may be an answer; then the tokens that end one are allowed, and else none of them."""
    held = follow(form, tokenizer, text)
    if isinstance(held, str):
        return False
    found = held.is_whole or min(form._stops) in allowed(held, len(tokenizer))
    assert held.is_whole or all((stop in allowed(held, len(tokenizer))) == found for stop in form._stops)
    return found


def at_random(form, tokenizer, begun="", seed=0, most=600):
    """The text of an answer that is drawn from all tokens that the form allows."""
    held, ids, random = follow(form, tokenizer, begun), [], Random(seed)
    while not held.is_whole and len(ids) < most:
        ids.append(random.choice(allowed(held, len(tokenizer))))
        if ids[-1] in form._stops:
            return tokenizer.decode(ids[:-1])
        held.accept(ids[-1])
    return tokenizer.decode(ids)


def test_what_is_drawn_is_of_the_schema(forms, tokenizer):
    form = forms.form("x", json_rule(PERSON), bare=True)
    found = [json.loads(at_random(form, tokenizer, seed=seed)) for seed in range(20)]
    assert all(map(is_person, found)) and len({one["kind"] for one in found}) == 2


def test_what_is_drawn_is_what_a_regular_expression_says(forms, tokenizer):
    pattern = r"[A-Z][a-z]{1,5}/\d{2}(\.\d)?\n你?"
    form = forms.form("x", regex_rule(pattern), bare=True)
    for seed in range(20):
        assert re.fullmatch(pattern, at_random(form, tokenizer, seed=seed))
    assert is_whole(form, tokenizer, "Ab/12\n你") and is_whole(form, tokenizer, "Ab/12.3\n")
    assert not is_whole(form, tokenizer, "Ab/12.3") and not is_whole(form, tokenizer, "ab/12\n")
    assert is_whole(forms.form("x", regex_rule("a/\\/\\\\b"), bare=True), tokenizer, "a//\\b")


def test_an_answer_ends_where_it_may_alone(forms, tokenizer):
    form = forms.form("x", regex_rule("ab?"), bare=True)
    assert [is_whole(form, tokenizer, text) for text in ("", "a", "ab", "abb")] == [False, True, True, False]
    assert follow(form, tokenizer, "ab").is_whole and not follow(form, tokenizer, "a").is_whole


def test_reasoning_comes_before_and_is_free(forms, tokenizer):
    form = forms.form("x", json_rule(PERSON))
    person = '{"name": "a", "age": 3, "kind": "cat"}'
    assert is_whole(form, tokenizer, person)
    assert is_whole(form, tokenizer, f"<think>{{}} so{{ 7 < 8</think>{person}")
    for text in (f"so {person}", f"<think>{person}", f"<think></think>so {person}", "<think></think>"):
        assert not is_whole(form, tokenizer, text)
    begun = Forms(Family(name="deepseek_r1").prepare(tokenizer_of("deepseek_r1")), [0])
    form = begun.form("x", json_rule(PERSON))
    assert begun.written.reasoning.begun
    assert is_whole(form, begun.tokenizer, f"I think so\n</think>\n\n{person}")
    assert not is_whole(form, begun.tokenizer, person)


@pytest.mark.parametrize("name", names())
def test_calls_are_those_that_every_family_writes(name):
    tokenizer, shape = Family(name=name).prepare(tokenizer_of(name)), Shape(**GOLDEN[name]["shape"])
    ends = [token for one in facts(name).stop for token in _ids(tokenizer, one)]
    forms = Forms(tokenizer, [tokenizer.eos_token_id, *ends])
    if forms.written.calls is None:
        assert forms.calls([WARMTH], True) is None
        return
    checked = 0
    for seed in range(60):
        turns, tools = conversation(seed, shape)
        for end, turn in enumerate(turns):
            if not turn.get("tool_calls") or turn["content"].strip() or checked == 12:
                continue
            form = forms.form("tools", forms.calls(TOOLS, True))
            try:
                text = written(tokenizer, turns[: end + 1], tools, facts(name).stop)
            except TemplateError:  # the family refuses this one
                continue
            assert is_whole(form, tokenizer, text.strip()), text
            assert not is_whole(form, tokenizer, text.strip().replace(turn["tool_calls"][0]["function"]["name"], "x"))
            checked += 1
    assert checked or not shape.tools
    _draw_calls(forms)


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_are_those_of_other_templates_too(name):
    tokenizer, found = of_template(TEMPLATES[name])
    _draw_calls(Forms(tokenizer, [tokenizer.eos_token_id, *_ids(tokenizer, "<|call|>")]))


def _ids(tokenizer, token):
    return [tokenizer.convert_tokens_to_ids(token)] if token in tokenizer.get_vocab() else []


def _draw_calls(forms):
    """Calls at random are read back as calls of the tools, with arguments of their schemas."""
    how = forms.written.reasoning
    begun = "" if how is None else f"{'' if how.begun else how.open}hm{how.close}{how.close_behind}"
    called = WARMTH
    if isinstance(forms.written.calls.body, Tagged):  # a text is any text there: it would hardly ever end
        free = {"name": {"type": "string", "enum": ["a", "b c"]}}
        parameters = PERSON | {"properties": PERSON["properties"] | free}
        called = {"type": "function", "function": {"name": "warmth", "parameters": parameters}}
    form = forms.form("tools", forms.calls([called], False))
    for seed in range(3):
        text = at_random(form, forms.tokenizer, begun, seed)
        said = parse(forms.written, begun + text, [WARMTH])
        assert [call.name for call in said.calls] == ["warmth"] and not said.content, text
        assert is_person(said.calls[0].arguments), text


def test_what_no_answer_can_be_held_to_is_said(forms):
    for rule, said in (
        (json_rule({"type": "objekt"}), "x: no answer can be held to it: Invalid type: objekt"),
        (json_rule({"not": {}}), 'Unimplemented keys: ["not"]'),
        (json_rule({"$ref": "https://example.org/a.json"}), "example.org"),
        (json_rule({"$ref": "#"}), "x: the answer cannot be held to its form: "),
        (json_rule({"type": "string", "pattern": "("}), "unclosed group"),
        (regex_rule("a(?=b)"), "look-around"),
    ):
        with pytest.raises(RecipeError, match=re.escape(said)) as caught:
            forms.form("x", rule)
        assert "\n" not in str(caught.value) and "|" not in str(caught.value)
    with pytest.raises(RecipeError, match="tools: the parameters of warmth: .*Invalid type: objekt"):
        forms.calls([{"function": {"name": "warmth", "parameters": {"properties": {"a": {"type": "objekt"}}}}}], True)
    with pytest.raises(RecipeError, match="json_schema and regex"):
        Sampling(json_schema={}, regex="a")
    with pytest.raises(ModelError, match="no token ends an answer"):
        Forms(fixtures_models.tiny_tokenizer(), []).form("x", regex_rule("a"))


def test_answers_side_by_side_are_those_that_each_would_be_alone():
    model, tokenizer = fixtures_models.tiny_model(), fixtures_models.tiny_tokenizer(None)
    turn = [{"role": "user", "content": "Who?"}]
    options = [
        {},
        {"json_schema": PERSON},
        {"regex": "[0-9]{5,9}"},
        {"json_schema": PERSON, "temperature": 1.5, "seed": 4, "top_p": 0.9},
        {"temperature": 1.0, "seed": 2},
    ]
    generator = Generator(model, tokenizer, decoder_for(model))
    prompt = generator.prompt(turn, 220)
    batch = generator.batch()
    streams = [batch.add(generator.request(prompt, Sampling(max_new_tokens=220, **one))) for one in options]
    together = ["".join(piece.text for piece in stream) for stream in streams]
    alone = [generator.complete(turn, max_new_tokens=220, **one) for one in options]
    assert together == alone
    assert is_person(json.loads(together[1])) and is_person(json.loads(together[3]))
    assert re.fullmatch("[0-9]{5,9}", together[2])
    assert [streams[1].finish, streams[2].finish, streams[3].finish] == ["stop"] * 3
    assert streams[0].finish == "length" and len(together[0]) > 100


def test_an_answer_that_cannot_be_held_any_further_ends_alone(monkeypatch, forms, tokenizer):
    model = fixtures_models.tiny_model()
    look = Held._look

    def fails_later(held):
        look(held)
        held.seen = getattr(held, "seen", 0) + 1
        held.problem = "it is too much" if held.seen == 7 else None  # behind the tokens that are tried

    monkeypatch.setattr(Held, "_look", fails_later)
    batch = Batch(decoder_for(model), tokenizer, frozenset([tokenizer.eos_token_id]))
    form = forms.form("x", regex_rule("a{50}"))
    held, free = (batch.add(Request((5, 6), Sampling(max_new_tokens=20), grammar=one)) for one in (form, None))
    with pytest.raises(RunError, match="behind 6 tokens: it is too much"):
        list(held)
    assert sum(len(piece.tokens) for piece in free) == 20
    monkeypatch.setattr(Held, "_look", lambda held: setattr(held, "problem", "it is too much"))
    with pytest.raises(RunError, match="its form: it is too much"):
        batch.add(Request((5, 6), grammar=form))
