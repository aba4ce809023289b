"""A template is followed or refused: nothing that it drops or rewrites is trained on silently."""

import pytest

import fixtures_chats as chats
import fixtures_models
from tunesmith.errors import TemplateError
from tunesmith.formats.messages import Messages
from tunesmith.templates.jinja import Jinja
from tunesmith.types import Message

ROLES = """\
{%- for message in messages %}{% if message.role in roles %}<|im_start|>{{ message.role + '\n' }}
{{- message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

SIMPLE = ROLES.replace(" if message.role in roles", " if true")
MOVING = """\
{%- set system = messages[0].content %}{% for message in messages[1:] %}<|im_start|>{{ message.role + '\n' }}
{{- message.content }}{{ ' [' + system + ']' if message.role == 'user' }}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""  # the system message stands last

TALK = chats.chat("Why?", "Because.", "And how?", "Slowly.")


def write(row, template=fixtures_models.CHATML):
    sample = Messages().read(row)
    return Jinja().write(sample.branches[0], sample.tools, fixtures_models.tiny_tokenizer(template))


def refusal(row, template):
    with pytest.raises(TemplateError) as caught:
        write(row, template)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def trained(written):
    return [(written.text[start:end], weight) for start, end, weight in written.spans]


def with_turn(row, number, **changes):
    turns = list(row["messages"])
    turns[number - 1] = turns[number - 1] | changes
    return row | {"messages": turns}


def test_a_turn_is_trained_as_it_says():
    assert trained(write(TALK)) == [("Because.<|im_end|>", 1.0), ("Slowly.<|im_end|>", 1.0)]
    assert trained(write(with_turn(TALK, 2, train=False))) == [("Slowly.<|im_end|>", 1.0)]
    assert trained(write(with_turn(TALK, 2, weight=0.25)))[0] == ("Because.<|im_end|>", 0.25)


def test_reasoning_and_calls_are_part_of_the_answer():
    row = chats.chat("How warm is it?", "Mild.", "Why?", "South wind.")
    row = with_turn(row, 2, tool_calls=[{"type": "function", "function": {"name": "warmth", "arguments": {}}}])
    row = with_turn(row, 4, reasoning_content="Think.") | {"tools": [chats.TOOL]}
    call = '<call>{"type": "function", "function": {"name": "warmth", "arguments": {}}}</call>'
    assert trained(write(row)) == [
        (f"Mild.{call}<|im_end|>", 1.0),
        ("<think>Think.</think>South wind.<|im_end|>", 1.0),
    ]


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_turn():
    row = chats.chat("One?", "<think>1</think>First.", "Two?", "<think>2</think>Second.")
    assert refusal(row, chats.THINKING).startswith("turn 2 of 4 is written differently")
    assert "data.template=per_turn" in refusal(row, chats.THINKING)
    assert trained(write(with_turn(row, 2, train=False), chats.THINKING)) == [
        ("<think>2</think>Second.<|im_end|>", 1.0)
    ]
    alone = chats.chat("Two?", "<think>2</think>Second.")
    assert trained(write(alone, chats.THINKING)) == [("<think>2</think>Second.<|im_end|>", 1.0)]


@pytest.mark.parametrize("answer", ["Because.", "I end with <|im_end|>", "<|im_end|>"])
def test_a_template_without_an_end_token_is_refused(answer):
    endless = SIMPLE.replace("<|im_end|>", "")
    assert "no special token" in refusal(chats.chat("Why?", answer), endless)
    assert trained(write(chats.chat("Why?", answer)))[0][0] == f"{answer}<|im_end|>"


def test_an_added_token_may_end_a_turn():
    tokenizer = fixtures_models.tiny_tokenizer(SIMPLE.replace("<|im_end|>", "<end>"))
    turns = Messages().read(TALK).branches[0]
    with pytest.raises(TemplateError, match="no special token"):
        Jinja().write(turns, (), tokenizer)
    tokenizer.add_tokens("<end>")
    assert trained(Jinja().write(turns, (), tokenizer))[1] == ("Slowly.<end>", 1.0)


def test_a_turn_of_another_role_is_trained_from_what_it_says_to_its_end():
    assert trained(write(with_turn(TALK, 1, train=True), SIMPLE))[0] == ("Why?<|im_end|>", 1.0)
    system = chats.chat(" Be brief. ", "Yes.")
    system["messages"][0] |= {"role": "system", "weight": 0.5}
    assert trained(write(system, SIMPLE))[0] == ("Be brief. <|im_end|>", 0.5)


def test_an_answer_needs_a_turn_before_it():
    answer_first = {"messages": [{"role": "assistant", "content": "Hi."}, *TALK["messages"]]}
    assert "turn 1 of 5 is an answer to nothing" in refusal(answer_first, SIMPLE)
    assert len(write(with_turn(answer_first, 1, train=False), SIMPLE).spans) == 2


TOOLS_TOLD = SIMPLE.replace("{%- for", "{{- tools | tojson if tools }}{%- for", 1)
ANSWERING = ROLES.replace("roles", "['user', 'assistant']").replace(
    "message.content +", "(message.tool_calls | tojson if message.tool_calls else '') + message.content +"
)
CALLS = [{"type": "function", "function": {"name": "warmth", "arguments": {}}}]
CALLED = [TALK["messages"][0], {"role": "assistant", "content": "", "tool_calls": CALLS}]


@pytest.mark.parametrize(
    ("row", "template", "lost"),
    [
        (TALK | {"tools": [chats.TOOL]}, SIMPLE, "tools"),
        (TALK | {"tools": [chats.TOOL]}, "{# tools #}" + SIMPLE, "tools"),
        (with_turn(TALK, 2, tool_calls=CALLS) | {"tools": [chats.TOOL]}, TOOLS_TOLD, "tool calls"),
        (with_turn(TALK, 4, reasoning_content="Hm."), SIMPLE, "reasoning"),
        (
            chats.chat("Why?", "Because.", system="Be brief."),
            ROLES.replace("roles", "['user', 'assistant']"),
            "a system turn (turn 1)",
        ),
        (
            {"messages": [*CALLED, {"role": "tool", "content": "Because"}, *TALK["messages"][1:]]},
            ANSWERING,
            "a tool turn (turn 3)",
        ),
    ],
)
def test_a_template_that_leaves_something_out_is_refused(row, template, lost):
    said = refusal(row, template)
    assert f"the conversation has {lost}, and the chat template does not write it" in said
    assert "data.template=NAME" in said
    assert write(row).spans  # a template that writes everything


def test_what_a_template_moves_or_escapes_is_not_lost():
    escaping = SIMPLE.replace("message.content", "(message.content | tojson)")
    assert trained(write(chats.chat('Say "a"', 'The "a"'), escaping)) == [('"The \\"a\\""<|im_end|>', 1.0)]
    written = write(chats.chat("Why?", "So.", system="Brief."), MOVING)
    assert written.text.startswith("<|im_start|>user\nWhy? [Brief.]<|im_end|>")
    assert trained(written) == [("So.<|im_end|>", 1.0)]


def test_what_jinja_says_is_the_reason():
    refusing = "{{ raise_exception('roles must alternate') }}"
    assert refusal(TALK, refusing) == "the chat template refuses the conversation: roles must alternate"
    assert refusal(TALK, "{% if %}").startswith("the chat template refuses the conversation: ")


def test_a_file_stands_in_for_the_tokenizers_template(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(SIMPLE, encoding="utf-8")
    tokenizer = fixtures_models.tiny_tokenizer()
    before = (tokenizer.chat_template, tokenizer.backend_tokenizer.to_str())
    prepared = Jinja(file=str(file)).prepare(tokenizer)
    assert prepared.chat_template == SIMPLE
    assert (tokenizer.chat_template, tokenizer.backend_tokenizer.to_str()) == before
    assert trained(Jinja().write((Message("user", "a"), Message("assistant", "b")), (), prepared)) == [
        ("b<|im_end|>", 1.0)
    ]


def test_without_a_template_or_its_file_one_line_says_what_to_do(tmp_path):
    with pytest.raises(TemplateError, match=r"has no chat template .* data.template=plain"):
        Jinja().prepare(fixtures_models.tiny_tokenizer(chat_template=None))
    with pytest.raises(TemplateError, match=r"nowhere.jinja cannot be read: No such file"):
        Jinja(file=str(tmp_path / "nowhere.jinja")).prepare(fixtures_models.tiny_tokenizer())
    (tmp_path / "latin.jinja").write_bytes(b"\xe9")
    with pytest.raises(TemplateError, match=r"latin.jinja cannot be read: it is no UTF-8 text"):
        Jinja(file=str(tmp_path / "latin.jinja")).prepare(fixtures_models.tiny_tokenizer())
