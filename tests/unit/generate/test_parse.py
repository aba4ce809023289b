"""Answers are read back as the messages that a chat template wrote them of: whole, or in pieces cut anywhere."""

import json
from random import Random

import pytest

import fixtures_models
from fixtures_answers import TEMPLATES, of_template, written
from golden.chats import TOOLS, conversation
from golden.test_families import GOLDEN, Shape, tokenizer_of
from tunesmith.errors import TemplateError
from tunesmith.generate.answer_format import AnswerFormat, AsJson, Named, Tagged, find
from tunesmith.generate.parse import Call, Parser, Said, parse
from tunesmith.templates._apply import apply
from tunesmith.templates.family import Family, facts, names

BODIES = {"coder": Tagged, "glm": Tagged, "function": Named, "python": AsJson, "harmony": Named}


def message_of(said, before):
    """A message of what was read, as a template gets it."""
    calls = [
        {"id": call.id or old["id"], "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call, old in zip(said.calls, before.get("tool_calls", ()), strict=True)
    ]
    message = {"role": "assistant", "content": said.content}
    message |= {"reasoning_content": said.reasoning} if said.reasoning else {}
    return message | ({"tool_calls": calls} if calls else {})


def in_pieces(found, text, tools, random):
    parser, said, place = Parser(found, tools), Said(), 0
    while place < len(text):
        step = random.choice((1, 1, 2, 3, 7, 40))
        said += parser.feed(text[place : place + step])
        place += step
    return said + parser.end()


@pytest.mark.parametrize("name", names())
def test_every_family_reads_back_what_it_writes(name):
    tokenizer = Family(name=name).prepare(tokenizer_of(name))
    found, shape, random = find(tokenizer), Shape(**GOLDEN[name]["shape"]), Random(1)
    can_call = shape.tools and "not written" not in facts(name).tools
    assert (found.calls is not None) == can_call
    assert found.reasoning is not None or facts(name).reasoning == "not written"
    read = thought = called = 0
    for seed in range(60):
        turns, tools = conversation(seed, shape)
        ends = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        for end in ends:
            try:
                text = written(tokenizer, turns[: end + 1], tools, facts(name).stop)
            except TemplateError:  # the family refuses this one
                continue
            said = parse(found, text, TOOLS)
            assert said == in_pieces(found, text, TOOLS, random)
            again = [*turns[:end], message_of(said, turns[end])]
            assert written(tokenizer, again, tools, facts(name).stop) == text
            calls = [call["function"] for call in turns[end].get("tool_calls", ())]
            assert [{"name": call.name, "arguments": call.arguments} for call in said.calls] == calls
            inline = "<think>" in turns[end]["content"]
            if not inline or found.reasoning is not None:
                assert said.content.strip() == turns[end]["content"].rpartition("</think>")[2].strip()
            if "reasoning_content" in turns[end]:
                assert said.reasoning.strip() == turns[end]["reasoning_content"].strip()
            read, thought, called = read + 1, thought + bool(said.reasoning), called + len(calls)
    assert read >= 60 and bool(thought) == shape.reasoning and bool(called) == can_call


@pytest.mark.parametrize("name", TEMPLATES)
def test_other_ways_to_write_calls_are_found_by_asking(name):
    tokenizer, found = of_template(TEMPLATES[name])
    assert type(found.calls.body) is BODIES[name]
    assert found.special == ({"<|python_tag|>"} if name == "python" else found.special)
    random, thinks = Random(2), found.reasoning is not None
    arguments = [{"place": 'Oslo "x" {', "days": 3}, {"place": "a\nb", "days": 0}, {}]
    for number in range(40):
        count = 1 if name == "harmony" else random.randint(0, 3)
        calls = [
            {"name": random.choice(("warmth", "wind_speed")), "arguments": random.choice(arguments)}
            for _ in range(count)
        ]
        content = random.choice(("Let me see.", "", "1 < 2 <tool", "so: {")) if name != "harmony" else ""
        turn = {"role": "assistant", "content": content or ("" if calls else "Yes")}
        turn |= {"tool_calls": [{"id": "c", "type": "function", "function": call} for call in calls]} if calls else {}
        thought = f"thought {number}" if thinks and number % 2 else ""
        turn |= {"reasoning_content": thought, "thinking": thought} if thought else {}
        text = written(tokenizer, [{"role": "user", "content": "x"}, turn], ())
        said = parse(found, text, TOOLS)
        assert said == in_pieces(found, text, TOOLS, random)
        assert said == Said(thought, turn["content"], tuple(Call(**call) for call in calls))


@pytest.fixture(scope="module")
def qwen():
    return find(Family(name="qwen3").prepare(tokenizer_of("qwen3")))


BROKEN = [
    '<tool_call>\n{"name": "warmth", "arguments": {"place": "Oslo"}\n</tool_call>',  # a brace is missing
    '<tool_call>\n{"name": "warmth", "arguments": ["Oslo"]}\n</tool_call>',
    '<tool_call>\n{"title": "warmth"}\n</tool_call>',
    "<tool_call> is how I would call",
    '<tool_call>\n{"name": "warmth", "arguments": {"place": "Os',
    '<tool_call>\n{"name": "warmth", "arguments": {"days": NaN}}\n</tool_call>',
    "a <tool_cal",
    "<tool_call>",
]


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("around", ["{}", "Well, {}", "{} \nand more", "<tool_call> {}"])
def test_what_is_no_whole_call_stays_text(qwen, text, around):
    text = around.format(text)
    assert parse(qwen, text, TOOLS) == Said(content=text)
    for seed in range(20):
        assert in_pieces(qwen, text, TOOLS, Random(seed)) == Said(content=text)


def test_a_call_behind_a_broken_one_is_found(qwen):
    good = '<tool_call>{"name": "warmth", "arguments": "{\\"days\\": 2}"}</tool_call>'  # no blanks, arguments as text
    said = parse(qwen, f"{BROKEN[2]}\n{good}", TOOLS)
    assert said == Said(content=BROKEN[2], calls=(Call("warmth", {"days": 2}),))


def test_a_call_whose_end_was_the_stop_token_counts(qwen):
    whole = '<tool_call>\n{"name": "warmth", "arguments": {"place": "a}"}}\n</tool_call>'
    for cut in (0, 3, len("</tool_call>"), len("\n</tool_call>")):
        assert parse(qwen, whole[: len(whole) - cut], TOOLS).calls == (Call("warmth", {"place": "a}"}),)


def test_without_tools_no_call_is_looked_for(qwen):
    text = '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "warmth", "arguments": {}}\n</tool_call>'
    assert parse(qwen, text) == Said("hm", text.partition("</think>\n\n")[2])


def test_pieces_come_as_soon_as_they_are_certain(qwen):
    parser = Parser(qwen, TOOLS)
    given = [
        parser.feed(piece) for piece in ("<thi", "nk>\nI ", "see", "\n</th", "ink>", "\n\nYes", " so", "\n<", "b>")
    ]
    assert [one.reasoning for one in given] == ["", "I", " see", "", "", "", "", "", ""]
    assert [one.content for one in given] == ["", "", "", "", "", "Yes", " so", "", "\n<b>"]
    first = '<tool_call>\n{"name": "warmth", "arguments": {}}\n</tool_call>'
    given = [parser.feed(piece) for piece in ("\n", first, f"\n{first[:-1]}", ">")]
    assert [len(one.calls) for one in given] == [0, 1, 0, 1] and not any(one.content for one in given)
    assert not parser.end()


def test_thoughts_that_the_prompt_began_and_nobody_ended_are_thoughts():
    found = find(Family(name="deepseek_r1").prepare(tokenizer_of("deepseek_r1")))
    assert found.reasoning.begun
    assert parse(found, "I think so\n</think>\n\nYes") == Said("I think so", "Yes")
    assert parse(found, "I think </thi") == Said("I think </thi")
    assert parse(found, "<think>\nhm</think>Yes") == Said("hm", "Yes")


def test_a_bare_call_must_be_all_that_is_said_and_of_a_known_tool():
    llama = find(Family(name="llama3_1").prepare(tokenizer_of("llama3_1")))
    call = '{"name": "warmth", "parameters": {"days": 1}}'
    assert llama.calls.is_bare and parse(llama, call, TOOLS).calls == (Call("warmth", {"days": 1}),)
    for text in (call.replace("warmth", "other"), f"See {call}", '{"a": 1}', "{"):
        assert parse(llama, text, TOOLS) == Said(content=text)


def test_without_a_template_all_is_text():
    assert find(fixtures_models.tiny_tokenizer(None)) == AnswerFormat()
    text = '<think>a</think><tool_call>{"name": "warmth", "arguments": {}}</tool_call>'
    assert parse(AnswerFormat(), text, TOOLS) == Said(content=text)


def test_the_reading_of_transformers_is_the_same_where_it_has_one(qwen):
    """Of the format that its own server has for Qwen (5.23), on answers that are not cut or broken."""
    theirs = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
            "tool_calls": {
                "open_pattern": r"\s*<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            "content": {"close_pattern": r"\s*(?:<\|im_end\|>)", "content": "text"},
        },
    }  # fmt: skip
    tokenizer = Family(name="qwen3").prepare(tokenizer_of("qwen3"))
    compared = 0
    for seed in range(80):
        turns, tools = conversation(seed, Shape(**GOLDEN["qwen3"]["shape"]))
        if "<think>" in json.dumps(turns):
            continue
        prompt = apply(tokenizer, turns[:-1], tuple(tools), prompt=True)
        text = written(tokenizer, turns, tools)
        their = tokenizer.parse_response(text, theirs, prefix=prompt)
        ours = parse(qwen, text, tools or TOOLS)
        assert (their.get("reasoning_content") or "").strip() == ours.reasoning.strip()
        assert (their.get("content") or "").strip() == ours.content.strip()
        compared += 1
    assert compared > 20
