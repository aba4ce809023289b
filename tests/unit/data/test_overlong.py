"""Whatever is done with a sample that is too long: it fits, and each trained answer has its header and its end."""

import re

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import fixtures_chats as chats
import fixtures_models
from fixtures_chats import chat, render
from tunesmith.data.ledger import Ledger
from tunesmith.data.loss import NO_TURN
from tunesmith.data.overlong import cut, truncate
from tunesmith.data.render import OVERLONG
from tunesmith.formats.classes import Classes
from tunesmith.formats.messages import Messages
from tunesmith.formats.text import Text
from tunesmith.types import Message, Tokens

TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.DOTALL)
TOKENIZER = fixtures_models.tiny_tokenizer()

text = st.lists(st.sampled_from(["river", "🙂🚀", "你好", "so", "\n", " "]), max_size=12).map("".join)
said = text.map(lambda words: f"{words}.")
exchange = st.builds(
    lambda asked, answer, train: [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": answer, "train": train},
    ],
    text,
    said,
    st.sampled_from([True, True, True, False, 0.5]),
)
rows = st.builds(
    lambda system, exchanges, last: {
        "messages": [{"role": "system", "content": system}] * bool(system)
        + [turn for pair in exchanges for turn in pair]
        + [{"role": "user", "content": "last"}] * last
    },
    st.one_of(st.just(""), said),
    st.lists(exchange, min_size=1, max_size=5),
    st.booleans(),
)
limits = st.integers(min_value=8, max_value=120)


def turns_of(tokens):
    """The turns that a rendered sample holds, which must be whole ones, as (role, content)."""
    decoded = TOKENIZER.decode(tokens.ids)
    assert TURN.sub("", decoded) == ""
    return TURN.findall(decoded)


def check(one, limit, weights):
    """A kept sample fits, and exactly its answers and their end are trained, with their weights."""
    (tokens,) = one.branches
    assert len(tokens) <= limit
    pieces = []
    for role, content in turns_of(tokens):
        weight = weights[content] if role == "assistant" else 0.0
        pieces += [(f"<|im_start|>{role}\n", 0.0), (f"{content}<|im_end|>", weight), ("\n", 0.0)]
    encoded = TOKENIZER.backend_tokenizer.encode("".join(piece for piece, _ in pieces), add_special_tokens=False)
    assert tokens.ids.tolist() == encoded.ids
    wanted = chats.expected_weight(pieces, [start for start, _ in encoded.offsets])
    np.testing.assert_array_equal(tokens.weight, wanted)


def numbered(row):
    """The row with answers that differ, and what each weighs."""
    turns = [
        turn | {"content": f"{number} {turn['content']}"} if turn["role"] == "assistant" else turn
        for number, turn in enumerate(row["messages"])
    ]
    weights = {turn["content"]: float(turn.get("train", 1.0)) for turn in turns if turn["role"] == "assistant"}
    return {"messages": turns}, weights


def length(turns):
    """The tokens of some turns."""
    pieces = chats.chatml({"messages": turns})
    return len(chats.tokens_of("".join(piece for piece, _ in pieces)))


@given(rows, limits)
def test_truncate_keeps_the_first_turns_or_shortens_a_prompt(row, limit):
    row, weights = numbered(row)
    turns = row["messages"]
    (one,) = render([row], max_tokens=limit, overlong="truncate")
    ends = [n + 1 for n, turn in enumerate(turns) if turn.get("train", turn["role"] == "assistant")]
    if not ends:
        assert one.dropped == NO_TURN
        return
    first = [turn if turn["role"] == "assistant" else turn | {"content": ""} for turn in turns[: ends[0]]]
    if length(first) > limit:
        assert one.dropped == OVERLONG
        return
    assert one.dropped is None
    check(one, limit, weights)
    kept = turns_of(one.branches[0])
    original = [(turn["role"], turn["content"]) for turn in turns]
    fitting = [end for end in ends if length(turns[:end]) <= limit]
    if length(turns) <= limit:
        assert kept == original and not one.truncated
    elif fitting:
        assert kept == original[: fitting[-1]] and one.truncated
    else:
        assert len(kept) == ends[0] and one.truncated
        for (role, content), (own_role, own) in zip(kept, original, strict=False):
            assert role == own_role
            assert own == content if role == "assistant" else own.startswith(content)


@given(rows, limits)
def test_split_loses_no_exchange_that_fits(row, limit):
    row, weights = numbered(row)
    turns = row["messages"]
    found = render([row], max_tokens=limit, overlong="split")
    if not any(weights.values()):
        assert [one.dropped for one in found] == [NO_TURN]
        return
    kept = [one for one in found if one.dropped is None]
    for one in kept:
        check(one, limit, weights)
    system = turns[:1] if turns[0]["role"] == "system" else []
    groups = [[turn] for turn in turns[len(system) :] if turn["role"] == "user"]
    for number, group in enumerate(groups):
        at = turns.index(group[0], len(system) + sum(map(len, groups[:number])))
        group += [turn for turn in turns[at + 1 : at + 2] if turn["role"] == "assistant"]
    assert sum(map(len, groups)) == len(turns) - len(system)
    fitting = [group for group in groups if length(system + group) <= limit]
    trained = [turn["content"] for group in fitting for turn in group if turn.get("train")]
    parts = [turns_of(one.branches[0]) for one in kept]
    assert [content for part in parts for role, content in part if weights.get(content)] == trained
    for part in parts:
        assert part[: len(system)] == [(turn["role"], turn["content"]) for turn in system]
    if length(turns) <= limit:
        assert len(found) == 1
    assert [one.part for one in found] == list(range(len(found)))


def test_split_takes_as_many_exchanges_as_fit():
    row = chat("q1", "a1", "q2", "a2", "q3", "a3", system="S")
    turns = row["messages"]
    found = render([row], max_tokens=length(turns[:5]), overlong="split")
    assert [[content for _, content in turns_of(one.branches[0])] for one in found] == [
        ["S", "q1", "a1", "q2", "a2"],
        ["S", "q3", "a3"],
    ]


def test_split_keeps_questions_that_follow_each_other_with_their_answer():
    turns = [
        {"role": role, "content": content}
        for role, content in (("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("user", "u3"), ("assistant", "a2"))
    ]  # fmt: skip
    found = render([{"messages": turns}], max_tokens=length(turns) - 1, overlong="split")
    assert [[content for _, content in turns_of(one.branches[0])] for one in found] == [
        ["u1", "a1"],
        ["u2", "u3", "a2"],
    ]


def test_tools_are_repeated_and_counted():
    row = chat("q1", "a1", "q2", "a2") | {"tools": [chats.TOOL]}
    whole = len(render([row])[0].branches[0])
    first, second = render([row], max_tokens=whole - 1, overlong="split")
    for one, answer in ((first, "a1"), (second, "a2")):
        decoded = TOKENIZER.decode(one.branches[0].ids)
        assert decoded.startswith("<|im_start|>tools") and f"{answer}<|im_end|>" in decoded


def test_a_long_prompt_loses_its_end_and_the_system_message_only_when_nothing_else_is_left():
    row = chat("river " * 30, "Yes.", system="Be brief and kind.")
    room = length(chat("river " * 5, "Yes.", system="Be brief and kind.")["messages"])
    (one,) = render([row], max_tokens=room, overlong="truncate")
    (_, system), (_, asked), (_, answer) = turns_of(one.branches[0])
    assert (system, answer) == ("Be brief and kind.", "Yes.") and ("river " * 30).startswith(asked)
    assert len(one.branches[0]) > room - 3  # and no more than needed
    room = length(chat("", "Yes.", system="Be")["messages"])
    (one,) = render([row], max_tokens=room, overlong="truncate")
    assert [content for _, content in turns_of(one.branches[0])] == ["Be", "", "Yes."]


@pytest.mark.parametrize("learned", [{"objective": "classify"}, {"loss": {"train_on_prompt": True}}])
def test_a_text_without_an_answer_loses_its_end(learned):
    row = {"messages": [{"role": "user", "content": "river " * 30}]}
    format_ = Messages()
    if "objective" in learned:
        row, format_ = {"text": row["messages"], "label": 1}, Classes()
    (one,) = render([row], format_, max_tokens=24, overlong="truncate", **learned)
    ((role, kept),) = turns_of(one.branches[0])
    assert one.truncated and role == "user" and kept and ("river " * 30).startswith(kept)
    assert 20 < len(one.branches[0]) <= 24 and one.branches[0].trained
    (one,) = render([row], format_, max_tokens=3, overlong="truncate", **learned)
    assert one.dropped == OVERLONG


def test_a_character_of_several_tokens_goes_whole():
    row = chat("👾" * 3, "Yes.")
    assert len(chats.tokens_of("👾")) > 2
    for room in range(length(chat("", "Yes.")["messages"]), length(row["messages"])):
        (one,) = render([row], max_tokens=room, overlong="truncate")
        assert one.truncated and turns_of(one.branches[0])[0][1] in ("", "👾", "👾👾")


def test_a_conversation_of_hundreds_of_turns_is_counted_few_times():
    roles = ("user", "assistant")
    turns = tuple(Message(roles[number % 2], "a") for number in range(400))
    counted = []
    kept = truncate(turns, lambda some: counted.append(1) or len(some), 301, TOKENIZER)
    assert len(kept) == 300 and len(counted) < 10


@given(st.integers(2, 40), st.integers(2, 15))
def test_the_pieces_of_a_document_ask_for_every_token_once(size, limit):
    tokens = Tokens(np.arange(size, dtype=np.int32), np.ones(size, np.float32))
    pieces = cut(tokens, limit)
    assert max(map(len, pieces)) <= limit and min(map(len, pieces)) >= 2
    assert [token for piece in pieces for token in piece.ids[1:].tolist()] == list(range(1, size))


def test_documents_are_shortened_too():
    row = {"text": "The river runs to the sea. " * 10}
    whole = [*chats.tokens_of(row["text"]), TOKENIZER.eos_token_id]
    (one,) = render([row], Text(), max_tokens=20, overlong="drop")
    assert one.dropped == OVERLONG
    (one,) = render([row], Text(), max_tokens=20, overlong="truncate")
    assert one.truncated and one.branches[0].ids.tolist() == whole[:20]
    parts = render([row], Text(), max_tokens=20, overlong="split")
    assert [token for one in parts for token in one.branches[0].ids[1:]] == whole[1:]
    ledger = Ledger()
    for one in parts:
        ledger.add(one)
    counts = ledger.as_dict()
    assert (counts["rows_read"], counts["rows_split"], counts["samples"]) == (1, 1, len(parts))
    assert counts["trained_tokens"] == len(whole) - 1


@pytest.mark.parametrize("overlong", ["drop", "truncate", "split"])
def test_the_ledger_tells_what_was_done(overlong):
    short, long = chat("q", "a"), chat("q1", "a1", "q2 " * 40, "a2", "q3", "a3")
    impossible, open_end = chat("q", "a " * 100), chat("q1", "a1", "q2 " * 40)
    ledger = Ledger()
    for one in render([short, long, impossible, open_end], max_tokens=60, overlong=overlong):
        ledger.add(one)
    counts = ledger.as_dict()
    kept = {"drop": 1, "truncate": 3, "split": 3}[overlong]
    first = {"drop": ["rows:2", "rows:3", "rows:4"]}.get(overlong, ["rows:3"])
    assert (counts["rows_read"], counts["rows_kept"]) == (4, kept)
    assert counts["dropped"] == {OVERLONG: {"count": 4 - kept, "first": first}}
    assert counts["rows_truncated"] == (2 if overlong == "truncate" else 0)
    assert counts["rows_split"] == (2 if overlong == "split" else 0)
    # q2 of the one is too long with its answer, q2 of the other without one
    assert counts["parts_dropped"] == (2 if overlong == "split" else 0)
    assert counts["samples"] == (4 if overlong == "split" else kept)
    assert counts["longest_tokens"] <= 60
