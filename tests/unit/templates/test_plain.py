"""Lines for models without a chat template; the tokenizer passed in stays as it was."""

import pytest

import fixtures_chats as chats
import fixtures_models
from tunesmith.errors import TemplateError
from tunesmith.formats.messages import Messages
from tunesmith.templates.plain import Plain


def test_lines_and_eos():
    tokenizer = Plain().prepare(fixtures_models.tiny_tokenizer(chat_template=None))
    row = chats.chat("Why?", "Because.", "How?", "So.", system="Be brief.")
    written = Plain().write(Messages().read(row).branches[0], (), tokenizer)
    assert written.text == (
        "Be brief.\n\nUser: Why?\nAssistant: Because.<|im_end|>\nUser: How?\nAssistant: So.<|im_end|>\n"
    )
    assert [written.text[a:b] for a, b, _ in written.spans] == [" Because.<|im_end|>", " So.<|im_end|>"]


@pytest.mark.parametrize("own", [None, fixtures_models.CHATML])
def test_the_tokenizer_passed_in_is_not_changed(own):
    tokenizer = fixtures_models.tiny_tokenizer(chat_template=own)
    before = tokenizer.backend_tokenizer.to_str()
    prepared = Plain().prepare(tokenizer)
    prepared.add_tokens("<more>")
    assert prepared.chat_template != own
    assert (tokenizer.chat_template, tokenizer.backend_tokenizer.to_str()) == (own, before)


def test_a_role_without_a_line_is_refused():
    row = {"messages": [*chats.chat("a", "b")["messages"], {"role": "tool", "content": "c"}]}
    tokenizer = Plain().prepare(fixtures_models.tiny_tokenizer(chat_template=None))
    with pytest.raises(TemplateError, match="no way to write the role tool"):
        Plain().write(Messages().read(row).branches[0], (), tokenizer)


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = fixtures_models.tiny_tokenizer(chat_template=None)
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match="has no eos_token"):
        Plain().prepare(tokenizer)


def test_a_file_stands_in_for_the_lines(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}", encoding="utf-8")
    prepared = Plain(file=str(file)).prepare(fixtures_models.tiny_tokenizer())
    assert prepared.chat_template == "{{ messages[0].content }}"
