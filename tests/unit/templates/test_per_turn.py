"""A template that writes earlier turns anew: each answer is trained in a conversation that ends with it."""

import pytest

import fixtures_chats as chats
import fixtures_models
from tunesmith.data.ledger import Ledger
from tunesmith.errors import RecipeError, TemplateError
from tunesmith.templates.per_turn import PerTurn
from tunesmith.types import Message

ENDING = """\
{%- for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}
{{- '<|assistant|>\n' if add_generation_prompt else eos_token }}"""  # as Phi-3 ends the whole conversation

ROW = chats.chat("One?", "<think>1</think>First.", "Two?", "<think>2</think>Second.", system="Be brief.")


def render(row, template=chats.THINKING, shared_prefix=False, **data):
    tokenizer = fixtures_models.tiny_tokenizer(template)
    data |= {"template": "per_turn", "shared_prefix": shared_prefix}
    return chats.render([row], tokenizer=tokenizer, **data), tokenizer


def test_a_conversation_ends_with_each_trained_turn_which_alone_is_trained_there():
    turns = tuple(Message(**turn) for turn in ROW["messages"])
    first, second = PerTurn().divide(turns)
    assert [turn.content for turn in first] == ["Be brief.", "One?", "<think>1</think>First."]
    assert [[turn.weight for turn in one] for one in (first, second)] == [[0, 0, 1], [0, 0, 0, 0, 1]]
    untrained = (Message("user", "a"), Message("assistant", "b", train=False))
    assert PerTurn().divide(untrained) == (untrained,)
    asked = (Message("user", "a", train=0.5), Message("assistant", "b"))
    assert [[turn.weight for turn in one] for one in PerTurn().divide(asked)] == [[0.5], [0, 1]]


def test_each_part_is_what_the_template_writes_and_learns_its_last_answer():
    found, tokenizer = render(ROW)
    assert [(one.part, one.dropped, one.divided) for one in found] == [(0, None, True), (1, None, True)]
    texts = []
    for one, end in zip(found, (3, 5), strict=True):
        tokens = one.branches[0]
        own = tokenizer.apply_chat_template(ROW["messages"][:end], return_dict=False)
        assert tokens.ids.tolist() == own
        texts.append(tokenizer.decode(tokens.ids[tokens.weight != 0]))
    assert texts == ["<think>1</think>First.<|im_end|>", "<think>2</think>Second.<|im_end|>"]
    before = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
    assert [one.repeated_tokens for one in found] == [0, len(chats.tokens_of(before))]


def test_the_ledger_says_what_is_repeated_and_that_a_row_is_one():
    found, _ = render(ROW)
    ledger = Ledger()
    for one in found:
        ledger.add(one)
    counts = ledger.as_dict()
    assert (counts["rows_read"], counts["samples"], counts["rows_split"], counts["parts_dropped"]) == (1, 2, 0, 0)
    repeated = found[1].repeated_tokens
    assert counts["repeated_tokens"] == repeated > 0
    assert f"{repeated} tokens are what conversations of one row begin with in common" in ledger.lines()


def test_a_part_that_is_too_long_is_dropped_alone_or_shortened():
    long = chats.chat("One?", "First.", " ".join(["two"] * 40), "Second.")
    found, tokenizer = render(long, max_tokens=40)
    assert [one.dropped for one in found] == [None, "longer than data.max_tokens"]
    found, tokenizer = render(long, max_tokens=40, overlong="truncate")
    assert [(one.part, one.truncated) for one in found] == [(0, False), (1, True)]
    tokens = found[1].branches[0]
    assert len(tokens) <= 40 and tokenizer.decode(tokens.ids[tokens.weight != 0]) == "Second.<|im_end|>"


def test_a_template_that_ends_the_whole_conversation_alone_is_trained_so():
    row = chats.chat("One?", "First.", "Two?", "Second.")
    with pytest.raises(TemplateError, match="data.template=per_turn makes a conversation of each answer"):
        chats.render([row], tokenizer=fixtures_models.tiny_tokenizer(ENDING))
    found, tokenizer = render(row, ENDING)
    texts = [tokenizer.decode(one.branches[0].ids[one.branches[0].weight != 0]) for one in found]
    assert texts == ["First.<|end|>\n<|im_end|>", "Second.<|end|>\n<|im_end|>"]


def test_policies_hold_in_each_part():
    found, tokenizer = render(ROW, loss={"reasoning": "keep"})
    texts = [tokenizer.decode(one.branches[0].ids[one.branches[0].weight != 0]) for one in found]
    assert texts == ["First.<|im_end|>", "Second.<|im_end|>"]
    assert len(render(ROW, loss={"turns": "last"})[0]) == 1
    with pytest.raises(RecipeError, match=r"data.template=per_turn writes turns several times"):
        render(ROW, loss={"train_on_prompt": True})


def test_a_template_that_begins_answers_in_another_way_than_it_asks_is_refused():
    asking = chats.THINKING.replace("assistant\n' }}{% endif", "assistant\n<think>' }}{% endif")
    with pytest.raises(TemplateError, match="turn 2 of 2 does not begin with what chat sends before an answer"):
        render(chats.chat("One?", "First."), asking)
    assert render(chats.chat("One?", "<think>1</think>First."), asking)[0][0].dropped is None
