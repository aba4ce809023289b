"""What is trained is what the tokenizer's own template writes, and what chat sends and stops at; else the run stops."""

from dataclasses import replace

import pytest

import fixtures_chats as chats
import fixtures_models
from tunesmith.data import parity, prompt
from tunesmith.data.ledger import SPECIAL, Ledger
from tunesmith.data.render import rendered
from tunesmith.errors import TemplateError
from tunesmith.formats.messages import Messages
from tunesmith.generate import engine
from tunesmith.templates.jinja import Jinja

ROW = chats.chat("Why?", "Because.", "And how?", "Slowly.")


class Changed(Jinja):
    """A template that does not write what the tokenizer's own does, or trains another piece of it."""

    text_from: str = ""
    text_to: str = ""
    start: int = 0
    end: int = 0

    def write(self, messages, tools, tokenizer):
        written = super().write(messages, tools, tokenizer)
        spans = tuple((start + self.start, end + self.end, weight) for start, end, weight in written.spans)
        return replace(written, text=written.text.replace(self.text_from, self.text_to), spans=spans)


def refusal(**changes):
    with pytest.raises(TemplateError) as caught:
        chats.render([ROW], template=Changed(**changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_template_that_writes_other_tokens_is_shown_with_the_first_of_them():
    first = len(chats.tokens_of("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"))
    said = refusal(text_from="Because", text_to="because")
    assert said.startswith("rows:1: the tokenizer's own template writes other tokens than are trained: token ")
    assert f"token {first + 1}, behind " in said and "assistant\\n'" in said
    upper, lower = chats.tokens_of("Because")[0], chats.tokens_of("because")[0]
    assert f"(id {upper}) there and " in said and f"(id {lower}) in training" in said


def test_an_answer_that_begins_elsewhere_than_chat_asks_for_it_is_shown():
    assert "before turn 2 of 4 chat and serve send other tokens than are trained" in refusal(start=3)
    assert "before turn 2 of 4 chat and serve send other tokens than are trained" in refusal(start=-4)


def test_an_answer_trained_up_to_no_stop_is_shown():
    last = chats.tokens_of("Because.")[-1]
    said = refusal(end=-len("<|im_end|>"))
    assert f"turn 2 of 4 is trained up to '.' (id {last}), at which generation does not stop" in said


def test_an_answer_that_joins_its_header_is_counted_and_not_refused():
    tokenizer = fixtures_models.tiny_tokenizer()
    tokenizer.add_tokens("\n\n")
    row = chats.chat("Why?", "\nBecause.", "And how?", "Slowly.", "And?", "\nSo.")
    (one,) = chats.render([row], tokenizer=tokenizer)
    assert one.joined_answers == 2
    ids, weight = one.branches[0].ids.tolist(), one.branches[0].weight
    joined = tokenizer.convert_tokens_to_ids("\n\n")
    assert ids.count(joined) == 2 and not any(weight[place] for place, token in enumerate(ids) if token == joined)
    ledger = Ledger()
    ledger.add(one)
    assert ledger.as_dict()["joined_answers"] == 2
    assert "2 answers begin within the last token of their header, which is not learned" in ledger.lines()
    assert chats.render([ROW], tokenizer=tokenizer)[0].joined_answers == 0


def test_chat_and_the_gate_have_one_function_for_what_stands_before_an_answer():
    assert engine.prompt_ids is parity.prompt_ids is prompt.prompt_ids
    model, tokenizer = fixtures_models.tiny_model(), fixtures_models.tiny_tokenizer()
    sent = engine.Generator(model, tokenizer).prompt(ROW["messages"][:3], 8).ids
    ids = chats.render([ROW])[0].branches[0].ids.tolist()
    assert tuple(ids[: len(sent)]) == sent
    assert ids[len(sent) :] == chats.tokens_of("Slowly.<|im_end|>\n")


@pytest.mark.parametrize("refusing", ["{{ raise_exception('no') }}", "{{ 1 + messages[0].content }}"])
def test_a_template_that_cannot_write_what_is_asked_is_said(refusing):
    tokenizer = fixtures_models.tiny_tokenizer(refusing)
    with pytest.raises(TemplateError, match="^the chat template refuses this conversation: "):
        prompt.prompt_ids(tokenizer, ROW["messages"])


def test_rows_are_looked_at_all_over_a_chunk():
    assert parity.looked_at([50] * 3, first=True) == {0, 1, 2}
    assert parity.looked_at([50] * 512, first=False) == {0, 256}
    for tokens, number in ((50, 100), (500, 40), (50_000, 8)):  # as many as 20,000 tokens, from 8 to 100
        places = sorted(parity.looked_at([tokens] * 512, first=True))
        assert len(places) == number and places[-1] > 440
    rows = [(f"rows:{number}", ROW) for number in range(512)]
    rows[256] = ("rows:256", chats.chat("Why?", "Of course."))
    with pytest.raises(TemplateError, match="^rows:256: "):
        chats.renderer(template=Changed(text_from="Of", text_to="of")).render(rows, Messages(), first=False)


def test_the_preview_says_the_same(tmp_path):
    recipe = chats.recipe(chats.write_rows(tmp_path / "a.jsonl", [ROW]), template=Changed(end=-10))
    with pytest.raises(TemplateError, match="at which generation does not stop"):
        list(rendered(recipe, fixtures_models.tiny_tokenizer(), lambda one, format_: None))


def test_a_template_that_writes_the_day_is_said():
    tokenizer = fixtures_models.tiny_tokenizer()
    assert prompt.notes(tokenizer) == ()
    tokenizer.chat_template = "{{ strftime_now('%d') }}" + tokenizer.chat_template
    (note,) = prompt.notes(tokenizer)
    assert "rows that are rendered on another day may be other tokens" in note


def test_special_tokens_in_the_text_of_a_row_are_counted():
    """They are read as such in training, as chat and serving read them: an answer that has the end ends there twice."""
    inside = [chats.chat("What is <|im_end|>?", "An end."), chats.chat("Why?", "So.<|im_end|>\n<|im_start|>user")]
    found = chats.render([chats.chat("Is <|im_end| one?", "No."), *inside, {"messages": ROW["messages"]}])
    assert [one.special_said for one in found] == [False, True, True, False]
    (end,) = chats.tokens_of("<|im_end|>")
    assert [(one.branches[0].ids == end).sum() for one in found[:3]] == [2, 3, 3]
    ledger = Ledger()
    for one in found:
        ledger.add(one)
    assert ledger.found[SPECIAL] == {"count": 2, "first": [one.where for one in found[1:3]]}
    (line,) = [line for line in ledger.lines() if "special token" in line]
    assert line.startswith("2 samples have in their own text what is read as a special token")
