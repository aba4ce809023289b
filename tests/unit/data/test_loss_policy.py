"""What data.loss says is learned is learned, whatever the template, and nothing else; a learned turn has its end."""

import random

import numpy as np
import pytest

import fixtures_chats as chats
import fixtures_models
from tunesmith.data import loss
from tunesmith.data.loss import NO_MATCH, NO_TURN, ONLY_BLANKS, ONLY_CALLS, ONLY_REASONING
from tunesmith.data.place import weigh
from tunesmith.errors import RecipeError
from tunesmith.recipe_data import Loss
from tunesmith.templates.family import Family, facts, names
from tunesmith.templates.jinja import Jinja
from tunesmith.types import Message

CALL = {"type": "function", "id": "callnumb1", "function": {"name": "warmth", "arguments": {"city": "Oslo"}}}
TALK = chats.chat("How many?", "There are 42 of 7 kinds.", "And now?", "Only 5 are left.")
WITH_CALL = {
    "messages": [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
        {"role": "tool", "content": "4 degrees", "tool_call_id": "callnumb1"},
        {"role": "assistant", "content": "It is 4 degrees."},
    ],
    "tools": [chats.TOOL],
}
END = "<|im_end|>"


def runs(tokens, tokenizer):
    """The learned pieces of a text, neighbouring tokens of one weight together, as (text, weight)."""
    weight = np.concatenate([tokens.weight, [0]])
    edges = [0, *(np.flatnonzero(np.diff(weight)) + 1)]
    pairs = zip(edges, [*edges[1:], len(weight)], strict=True)
    return [(tokenizer.decode(tokens.ids[a:b]), float(weight[a])) for a, b in pairs if weight[a]]


def learned(row, tokenizer=None, template="jinja", **policy):
    tokenizer = tokenizer or fixtures_models.tiny_tokenizer()
    (one,) = chats.render([row], tokenizer=tokenizer, template=template, loss=policy)
    return one.dropped or [text for text, _ in runs(one.branches[0], tokenizer)]


def with_turn(row, number, **changes):
    turns = list(row["messages"])
    turns[number - 1] = turns[number - 1] | changes
    return row | {"messages": turns}


def of_family(name):
    """A tokenizer that has the tokens of a family, and the family."""
    tokenizer = fixtures_models.tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.add_tokens([one for one in facts(name).tokens if not one.endswith("_token")], special_tokens=True)
    family = Family(name=name)
    return family.prepare(tokenizer), family


def test_roles_say_whose_turns_are_learned():
    row = chats.chat("How many?", "Two.", system="Be brief.")
    assert learned(row) == [f"Two.{END}"]
    assert learned(row, roles=["user"]) == [f"How many?{END}"]
    assert learned(row, roles="system") == [f"Be brief.{END}"]
    assert learned(row, roles=["user", "assistant"]) == [f"How many?{END}", f"Two.{END}"]
    assert learned(WITH_CALL, roles=["tool"]) == [f"4 degrees{END}"]
    assert learned(row, roles=["tool"]) == "no turn of data.loss.roles (tool)"


def test_the_last_turn_alone_may_be_learned():
    assert learned(TALK, turns="last") == [f"Only 5 are left.{END}"]
    assert learned(TALK, turns="last", roles=["user"]) == [f"And now?{END}"]
    assert learned(TALK, turns="last", roles=["user", "assistant"]) == [f"Only 5 are left.{END}"]


def test_what_a_row_says_outweighs_the_policy():
    said = with_turn(with_turn(TALK, 2, train=True), 4, train=False)
    assert learned(said, turns="last") == [f"There are 42 of 7 kinds.{END}"]
    assert learned(with_turn(TALK, 1, train=0.5), roles=["assistant"], turns="last") == [
        f"How many?{END}",
        f"Only 5 are left.{END}",
    ]
    assert learned(with_turn(TALK, 2, train_spans=[[0, 5]]), pattern="left") == [
        "There",
        END,
        " left",
        END,
    ]


def test_a_pattern_learns_what_it_matches_and_the_end_of_the_turn():
    assert learned(TALK, pattern=r"\d+") == ["42", "7", END, "5", END]
    assert learned(TALK, pattern=r"(\d+) of (\d+)|kinds") == ["42", "7", END]  # groups alone; no end of a turn without
    assert learned(TALK, pattern="nowhere") == NO_MATCH
    call = {"messages": WITH_CALL["messages"][:2], "tools": WITH_CALL["tools"]}
    assert learned(call, pattern="Oslo") == ["Oslo", END]
    thought = with_turn(chats.chat("Why?", "So it is."), 2, reasoning_content="I guess so.")
    assert learned(thought, pattern="so|is") == ["so", " is", END]


def test_calls_may_be_context():
    assert learned(WITH_CALL, tool_calls=False) == ["I look.", END, f"It is 4 degrees.{END}"]
    alone = with_turn(WITH_CALL, 2, content="")
    assert learned(alone, tool_calls=False) == [f"It is 4 degrees.{END}"]
    call = {"messages": alone["messages"][:2], "tools": WITH_CALL["tools"]}
    assert learned(call, tool_calls=False) == ONLY_CALLS


@pytest.mark.parametrize("inside", [False, True])
def test_reasoning_is_learned_kept_or_dropped(inside):
    answer = {"content": "<think>Hm, two.</think>Two."} if inside else {"reasoning_content": "Hm, two."}
    row = with_turn(chats.chat("How many?", "Two."), 2, **answer)
    assert learned(row) == [f"<think>Hm, two.</think>Two.{END}"]
    assert learned(row, reasoning="keep") == [f"Two.{END}"]
    assert learned(row, reasoning="drop") == [f"Two.{END}"]
    tokenizer = fixtures_models.tiny_tokenizer()
    texts = {}
    for choice in ("keep", "drop"):
        (one,) = chats.render([row], tokenizer=tokenizer, loss={"reasoning": choice})
        texts[choice] = tokenizer.decode(one.branches[0].ids)
    assert "<think>Hm, two.</think>Two." in texts["keep"]
    assert "think" not in texts["drop"] and texts["drop"].endswith(f"assistant\nTwo.{END}\n")
    silent = with_turn(row, 2, content="<think>Hm.</think>" if inside else "", reasoning_content="Hm.")
    assert learned(silent, reasoning="keep") == ONLY_REASONING
    assert learned(silent, reasoning="drop") == "empty answer"


def test_calls_behind_reasoning_keep_their_own_tags():
    row = with_turn(WITH_CALL, 2, content="", reasoning_content="I look.")
    row = row | {"messages": row["messages"][:2]}
    call = (
        '<call>{"id": "callnumb1", "type": "function", "function": {"name": "warmth", "arguments": {"city": "Oslo"}}}'
    )
    assert learned(row, reasoning="keep") == [f"{call}</call>{END}"]
    assert learned(row, tool_calls=False) == ["<think>I look.</think>", END]


def test_characters_that_a_row_names_are_learned_with_their_weight():
    row = with_turn(chats.chat("How many?", "  Two, or three.  "), 2, train_spans=[[0, 5], [7, 16, 0.5]])
    tokenizer = fixtures_models.tiny_tokenizer()
    (one,) = chats.render([row], tokenizer=tokenizer)
    assert runs(one.branches[0], tokenizer) == [(" Two", 1.0), ("or three.", 0.5), (END, 1.0)]
    row = with_turn(row, 2, weight=2.0)
    (one,) = chats.render([row], tokenizer=tokenizer)
    assert runs(one.branches[0], tokenizer) == [(" Two", 2.0), ("or three.", 1.0), (END, 2.0)]
    assert learned(with_turn(chats.chat("How many?", "Two."), 1, train_spans=[[4, 8]]), turns="last") == [
        " many",
        END,
        f"Two.{END}",
    ]
    assert learned(with_turn(chats.chat("How?", "  Two."), 2, train_spans=[[0, 2]])) == ONLY_BLANKS
    thought = "<think>Hm.</think>Two, or three."
    row = with_turn(chats.chat("How many?", thought), 2, train_spans=[[thought.index("or"), thought.index(" three")]])
    assert learned(row) == learned(row, reasoning="drop") == ["or", END]


def test_every_token_may_be_learned():
    row = chats.chat("How many?", "Two.", "And now?", "Three.", system="Be brief.")
    tokenizer = fixtures_models.tiny_tokenizer()
    (one,) = chats.render([row], tokenizer=tokenizer, loss={"train_on_prompt": True})
    whole = tokenizer.decode(one.branches[0].ids)
    assert runs(one.branches[0], tokenizer) == [(whole.removesuffix("\n"), 1.0)]
    said = with_turn(with_turn(row, 3, train=False), 4, weight=0.5)
    (one,) = chats.render([said], tokenizer=tokenizer, loss={"train_on_prompt": True})
    before, _, after = whole.removesuffix("\n").partition(f"Two.{END}")
    between, _, last = after.partition(f"And now?{END}")
    assert runs(one.branches[0], tokenizer) == [(before, 1.0), (between, 1.0), (f"And now?{END}", 0.5), (last, 1.0)]


@pytest.mark.parametrize("other", [{"roles": ["user"]}, {"turns": "last"}, {"pattern": "a"}, {"reasoning": "keep"}])
def test_what_chooses_nothing_is_refused(other):
    with pytest.raises(RecipeError, match="train_on_prompt learns every token, and"):
        chats.recipe(loss={"train_on_prompt": True} | other)
    with pytest.raises(RecipeError, match="the objective pretrain learns every token"):
        chats.renderer(objective="pretrain", loss=other)


@pytest.mark.parametrize("name", names())
def test_a_family_learns_the_same_of_a_turn(name):
    tokenizer, family = of_family(name)
    turns = tuple(Message(**turn) for turn in TALK["messages"][:2])

    def pieces(**said):
        policy = Loss(**said)
        found = loss.write(policy, family, loss.resolve(policy, turns), (), tokenizer)
        return [found.text[start:end].strip() for start, end, _ in found.within or found.spans]

    (whole,) = pieces()
    end = whole.partition("There are 42 of 7 kinds.")[2].strip()
    assert end in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab())
    assert pieces(pattern=r"\d+") == ["42", "7", end]
    assert pieces(pattern="(There).*(7)") == ["There", "7", end]
    assert pieces(roles=["user"])[0].startswith("How many?")


def test_the_blank_that_a_template_writes_before_a_turn_is_learned_with_its_first_word():
    one_word, words = (chats.chat(content, "Two.") for content in ("the", "the Moon"))  # " the" is one token
    assert learned(one_word, template="plain", roles=["user"]) == [" the"]
    assert learned(words, template="plain", roles=["user"], pattern="the") == [" the"]
    assert learned(words, template="plain", roles=["user", "assistant"]) == [" the Moon", " Two.<|im_end|>"]


@pytest.mark.parametrize("name", ["vicuna", "llama2"])
def test_a_turn_begins_with_at_most_one_blank_of_the_templates(name):
    tokenizer, family = of_family(name)
    for content, begins in (("Hello", " Hello"), (" Hello", "Hello"), ("\nHello", "Hello")):
        turns = loss.resolve(Loss(roles=["user"]), (Message("user", content), Message("assistant", "Two.")))
        written = family.write(turns, (), tokenizer)
        ((start, end, _),) = written.spans
        assert written.text[start:end].startswith(begins)


def said(rng):
    return f"{rng.choice(['', ' ', chr(10)])}{' '.join(rng.choices(chats.WORDS, k=rng.randint(1, 5)))} so 4"


def conversation(rng, writes):
    """Turns of a conversation, with what the family writes: system messages, calls, reasoning."""
    turns = [Message("system", said(rng))] if writes["system"] and rng.random() < 0.4 else []
    for _ in range(rng.randint(1, 3)):
        turns.append(Message("user", said(rng)))
        if writes["tools"] and rng.random() < 0.4:
            turns.append(Message("assistant", rng.choice(writes["before_calls"]), tool_calls=(CALL,)))
            turns.append(Message("tool", said(rng), tool_call_id="callnumb1"))
        thought = (
            f"<think>\n{said(rng).replace('<think>', '')}\n</think>\n\n"
            if writes["reasoning"] and rng.random() < 0.4
            else ""
        )
        content = thought + said(rng)
        length = len(content)
        spans = ((length // 2, length - 2, 0.5), (length - 2, length, 1.0)) if rng.random() < 0.2 else None
        turns.append(Message("assistant", content, train=rng.choice([None, None, True, 0.5, False]), spans=spans))
    return (*turns[:-1], Message("assistant", turns[-1].content))


POLICIES = [
    {},
    {"turns": "last"},
    {"tool_calls": False},
    {"reasoning": "keep"},
    {"reasoning": "drop"},
    {"pattern": r"so|\d"},
    {"pattern": "Oslo", "turns": "last"},
    {"reasoning": "keep", "tool_calls": False, "pattern": "so (4)"},
]


@pytest.mark.parametrize("name", ["chatml", "llama3", "llama2", "mistral_v3", "gemma", "qwen3", "qwen2_5", "zephyr"])
def test_nothing_is_learned_outside_of_an_answer_and_no_end_is_left_out(name):
    tokenizer, family = of_family(name)
    writes = {
        "system": name != "gemma",
        "tools": name in ("mistral_v3", "qwen2_5"),
        "before_calls": ["", "I look."] if name == "qwen2_5" else [""],
        "reasoning": name != "llama2",
    }
    stops = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    answers = partly = 0
    for seed in range(24):
        rng = random.Random(seed)
        policy = Loss(**POLICIES[seed % len(POLICIES)])
        for turns in family.divide(loss.resolve(policy, conversation(rng, writes))):
            found = loss.write(policy, family, turns, (), tokenizer)
            encoded = tokenizer.backend_tokenizer.encode(found.text, add_special_tokens=False)
            weight, _ = weigh(found, encoded)
            starts = np.asarray([start for start, _ in encoded.offsets])
            outside = np.ones(len(starts), bool)
            for index, turn in enumerate(turns):
                if not turn.weight:
                    continue
                told = [one.spoken() for one in turns]
                prompt = tokenizer.apply_chat_template(told[:index], tokenize=False, add_generation_prompt=True)
                whole = tokenizer.apply_chat_template(told[: index + 1], tokenize=False).rstrip()
                assert found.text.startswith(prompt) and found.text.startswith(whole)
                inside = (starts >= len(prompt)) & (starts < len(whole))
                outside &= ~inside
                if weight[inside].any():
                    last = np.flatnonzero(inside)[-1]
                    assert weight[last] == turn.weight and encoded.ids[last] in stops
                    answers += 1
                    partly += not weight[inside].all()
            assert not weight[outside].any()
    assert answers > 20 and partly > 5


def test_the_usual_policy_writes_the_conversation_no_more_often(monkeypatch):
    calls = []
    tokenizer = fixtures_models.tiny_tokenizer()
    own = tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, **k: calls.append(1) or own(*a, **k))
    turns = tuple(Message(**turn) for turn in TALK["messages"])
    Jinja().write(turns, (), tokenizer)
    alone = len(calls)
    calls.clear()
    loss.write(Loss(), Jinja(), loss.resolve(Loss(), turns), (), tokenizer)
    assert len(calls) == alone == 4  # the whole, two prompts, and the first answer as the last turn


def test_reasons_say_which_policy_left_nothing():
    row = (Message("user", "a"), Message("assistant", "b", train=False))
    assert loss.reason(Loss(), row) == NO_TURN
    assert loss.reason(Loss(pattern="x"), (Message("assistant", "b", train=True),)) == NO_MATCH
