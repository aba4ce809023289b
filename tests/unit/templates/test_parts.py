"""The parts of a turn are found in the text of any template, or the template is refused by name of turn and part."""

import random

import pytest

import fixtures_chats as chats
import fixtures_models
from tunesmith.errors import TemplateError
from tunesmith.templates._apply import apply
from tunesmith.templates._parts import Conversation

CALL = {"type": "function", "function": {"name": "warmth", "arguments": {"city": "Oslo"}}}
TURNS = [
    {"role": "user", "content": "How?"},
    {"role": "assistant", "content": " So it is. ", "reasoning_content": "Hm", "tool_calls": [CALL]},
]

CHATML = fixtures_models.CHATML
TRIMMED = CHATML.replace("{{ message.content }}", "{{ message.content | trim }}")
ESCAPED = CHATML.replace("{{ message.content }}", "{{ message.content | tojson }}")
ASCII = CHATML.replace("{{ message.content }}", "{{ message.content | tojson(ensure_ascii=true) }}")
CHOOSING = CHATML.replace(
    "{{ message.content }}",
    "{{ '[starts so] ' if message.content.strip().startswith('So') }}{{ message.content }}",
)
TWICE = CHATML.replace("{{ message.content }}", "{{ message.content }}{{ message.content }}")
CHANGED = CHATML.replace("{{ message.content }}", "{{ message.content | upper | reverse }}")


def conversation(template, turns=TURNS, tools=()):
    tokenizer = fixtures_models.tiny_tokenizer(template)
    return Conversation(tokenizer, turns, tools, apply(tokenizer, turns, tools))


def cut(found, text, *parts):
    return [text[slice(*getattr(found, part))] for part in parts]


@pytest.mark.parametrize("template", [CHATML, TRIMMED])
def test_parts_are_what_the_turn_says_without_blanks(template):
    one = conversation(template)
    found = one.find(1, [(1, 3), (4, 6), (0, 1)])
    assert cut(found, one.text, "reasoning", "content") == ["Hm", "So it is."]
    assert [one.text[slice(*place)] for place in found.calls] == ["warmth"]
    assert [(number, one.text[slice(*place)]) for number, place in found.spans] == [(0, "So"), (1, "it")]
    assert one.text[found.end :].startswith('", "arguments"')
    assert one.text[: one.turn_end(0)].endswith("How?<|im_end|>")


def test_a_part_that_is_escaped_is_found_as_it_is_written():
    turns = [TURNS[0], {"role": "assistant", "content": 'a "b" \u00e9'}]
    one = conversation(ESCAPED, turns)
    assert cut(one.find(1, [(2, 5)]), one.text, "content") == ['a \\"b\\" \u00e9']
    assert [one.text[slice(*place)] for _, place in one.find(1, [(2, 5)]).spans] == ['\\"b\\"']


def test_a_part_whose_beginning_decides_what_is_written_is_found_by_its_marks_or_refused():
    one = conversation(CHOOSING)  # marked, the content no longer starts so
    with pytest.raises(TemplateError, match=r"^turn 2 of 2: where the chat template writes its content is unclear"):
        one.find(1)
    other = conversation(CHOOSING, [TURNS[0], {"role": "assistant", "content": "It is."}])
    assert cut(other.find(1), other.text, "content") == ["It is."]


@pytest.mark.parametrize("template", [TWICE, ASCII])
def test_a_part_that_is_written_twice_or_whose_marks_are_is_not_guessed(template):
    with pytest.raises(TemplateError, match=r"^turn 2 of 2: where the chat template writes its content is unclear"):
        conversation(template, [TURNS[0], {"role": "assistant", "content": "It is \u00e9."}]).find(1)


def test_a_part_that_is_turned_around_is_found_by_what_stands_around_it():
    one = conversation(CHANGED, [TURNS[0], {"role": "assistant", "content": "So it is."}])
    assert cut(one.find(1), one.text, "content") == [".SI TI OS"]


def test_characters_for_private_use_in_the_text_are_not_taken_for_marks():
    content = chr(0x100000) + " so " + chr(0x100001)
    one = conversation(CHATML, [{"role": "user", "content": content}, {"role": "assistant", "content": content}])
    assert cut(one.find(1), one.text, "content") == [content]
    assert one.find(1).content[0] > one.find(0).content[1]


def test_a_thought_in_the_content_is_found_where_the_template_rewrites_it():
    rewriting = CHATML.replace(
        "{{ message.content }}",
        "{% set thought = message.content.split('</think>')[0].split('<think>')[-1] %}"
        "{% if '</think>' in message.content %}{{ '<think>\\n\\n' + thought.strip() + '\\n</think>' }}{% endif %}"
        "{{ message.content.split('</think>')[-1].strip() }}",
    )
    turns = [TURNS[0], {"role": "assistant", "content": "<think> Hm </think> So."}]
    for template in (CHATML, rewriting):
        one = conversation(template, turns)
        assert cut(one.find(1), one.text, "reasoning", "content") == ["Hm", "So."]
    behind = turns[1]["content"].index("So") + 2
    one = conversation(rewriting, turns)
    found = one.find(1, [(0, behind)])  # from the tag into the answer: the template reads the tag and writes another
    assert [(number, one.text[slice(*place)]) for number, place in found.spans] == [(0, "Hm"), (0, "So")]


def test_where_content_would_begin_is_known():
    turns = [TURNS[0], {"role": "assistant", "content": "", "reasoning_content": "Hm", "tool_calls": [CALL]}]
    one = conversation(CHATML, turns)
    assert one.text[one.point(1) :].startswith("<call>")
    silent = conversation(CHATML.replace("{{ message.content }}", ""), turns)
    assert silent.point(1) is None


def test_parts_of_random_conversations_are_found():
    rng = random.Random(5)
    for seed in range(40):
        words = [rng.choice(chats.WORDS) for _ in range(rng.randint(1, 8))]
        content = rng.choice(["", " ", "\n"]) + " ".join(words) + " so" + rng.choice(["", " ", "\n\n"])
        start = rng.randrange(len(content))
        end = rng.randint(start, len(content))
        one = conversation(rng.choice([CHATML, TRIMMED]), [TURNS[0], {"role": "assistant", "content": content}])
        found = one.find(1, [(start, end)])
        assert cut(found, one.text, "content") == [content.strip()], seed
        wanted = content[start:end].strip()
        assert "".join(one.text[slice(*place)] for _, place in found.spans) == wanted
        for _, place in found.spans:
            lead = len(content) - len(content.lstrip())
            assert place[0] - found.content[0] >= start - lead
